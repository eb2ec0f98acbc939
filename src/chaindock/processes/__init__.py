"""Processes of this machine: started as groups, limited, ended for certain."""
