"""`drqn-dist scale`: measures how a run scales, fits laws to it, and predicts other machines.

    settings   what is asked for                  points    measured points and their folder
    measure    one point                          shard     what calls to the replay cost
    fits       Amdahl's law, USL                  report    table, summary, bottleneck;  picture, text: shown
    profile    service times, from points         predict   bounds from them
    sweep      the command itself

Light to import: scipy and torch come with the modules that need them.
"""
