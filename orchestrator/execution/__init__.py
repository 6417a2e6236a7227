"""Trials on a Ray cluster: Ray Tune schedules them, Ray Train workers run them."""
