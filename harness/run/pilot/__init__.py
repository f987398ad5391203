"""The stages of a pilot: what is asked, what a look tells, trainings within a budget, the smallest setting."""
