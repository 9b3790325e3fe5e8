"""Tables of sequenced items: columns, appends, fences, pages, swaps, and the registry."""
