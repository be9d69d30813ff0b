"""Door 3: what is sent to venues, what venues tell, and what the clock asks for."""
