"""Reading of compiled programs: what they need, what they send, and what that means for a given chip."""
