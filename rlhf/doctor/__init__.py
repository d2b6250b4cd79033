"""`rlhf doctor`: is everything here that the commands need, and where does one get what is missing?"""
