"""The command line.

app                                         the `compllm` command; experts and doctor
ask plan server train eval route explain replay simulate     commands in modules of their own
init expert base                            a user's own folder, experts and base
shared console view draw question_file      what several commands use
doctor doctor_gpu doctor_url prepare        what is installed, and what `up` makes first
"""
