"""What ReST is compared with: behavioural cloning and PPO."""
