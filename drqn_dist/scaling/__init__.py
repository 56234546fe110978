"""`drqn-dist scale`: measures how a run scales with its actors, and predicts other machines.

    settings   what is asked for                 measure    one point
    points     measured points, their folder     fit        the Universal Scalability Law
    report     rows, bottleneck, text            picture    the same as a picture
    predict    bounds from the measured points   sweep      the command itself

Light to import: scipy and torch come with the modules that need them.
"""
