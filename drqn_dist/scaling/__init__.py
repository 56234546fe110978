"""`drqn-dist scale`: measures how a run scales, fits laws to it, and simulates what cannot be measured here.

    settings   what is asked for                       points     measured points and their folder
    measure    one point                               crowding   how busy neighbours slow a core
    busy       how busy the cores are                  shard      what a replay shard costs
    nodes      several Ray nodes on this machine
    fits       Amdahl's law, Universal Scalability     report     table, summary, bottleneck;  picture, text: shown
    profile    what a simulation needs                 parts, simulate, forecast   the model and what it says
    sweep      the command itself

Light to import: scipy, simpy and torch come with the modules that need them.
"""
