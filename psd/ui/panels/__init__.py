"""Parts of the page beside the tabs: prompt, sharing, status."""
