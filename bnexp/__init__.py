"""bnexp: what does normalization do to training?"""
