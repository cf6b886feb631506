"""The mathematics and the networks that training and serving share: schedules, UViT, plans, samplers, families on disk."""
