"""Losses to a teacher, teachers, their stored answers, the trainer that blends them in."""
