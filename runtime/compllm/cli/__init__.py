"""The command line.

app                                         the `compllm` command; experts and doctor
ask plan server train eval route explain replay simulate     commands in modules of their own
init expert base base_plans                 a user's own folder, experts and base
expert_add expert_try expert_change         commands of experts, and what they share
eval_set known_questions                    a user's own questions, asked and counted
shared console view draw question_file      what several commands use
doctor doctor_gpu doctor_url prepare        what is installed, and what `up` makes first
"""
