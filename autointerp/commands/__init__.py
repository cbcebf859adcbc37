"""What the command line does, one file a command that is more than a call: run, plan, prompts, sweep, train …"""
