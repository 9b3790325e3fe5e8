"""EventSeal under other libraries. Nothing here is imported unless that library's user asks for it."""
