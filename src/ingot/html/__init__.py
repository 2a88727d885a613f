"""A module and its stages as one self-contained HTML page."""
