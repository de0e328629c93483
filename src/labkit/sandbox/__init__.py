"""The child process that holds a reader's code, and the walls around it: knows no lab."""
