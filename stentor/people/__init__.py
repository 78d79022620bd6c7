"""Who is who: users, tiers, projects, API keys."""
