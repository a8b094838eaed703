"""The methods, side by side: each turns predictions and rewards into a direction."""
