"""The text audits work on: prompts to attack, text an attacker owns, and a task to measure utility with."""
