"""What experiments leave behind: JSON, tables, timings and pictures, with what they depend on."""
