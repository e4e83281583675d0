"""Everything after the numbers: result files, the published values, comparison tables, figures, and what is committed."""
