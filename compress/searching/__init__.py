"""The search as a whole: what is asked, the loop of trials, its dry run and what it says meanwhile."""
