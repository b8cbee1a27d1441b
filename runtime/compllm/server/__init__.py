"""Starts, watches and stops a tritonserver on this machine.

triton_server     the user's server and servers of one block: up, status, down, running
triton_process    the processes of one server; supervisor: their parent
triton_files      what a tritonserver needs before it can start
triton_state      what a server is known by
health            what a server answers about itself
reload            the model `comp_llm` of a running server, with changed settings
server_log        its log: one file a start
"""
