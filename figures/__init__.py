"""Everything after the numbers: result files, published values, tables, figures, and the committed
ones.
"""
