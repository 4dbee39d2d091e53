"""One readable file per question: what the shield costs."""
