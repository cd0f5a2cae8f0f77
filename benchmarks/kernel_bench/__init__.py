"""What the benchmark of the attention kernels is made of: cases, floors and goals, occupancy, and the two ways of measuring."""
