"""When are Neural ODE Solutions Proper ODEs? (Ott et al. 2020): critical steps, and steps that adapt."""
