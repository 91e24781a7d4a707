"""Long jobs on many items: resumable at any moment, and shared by any number of processes.

In: images or a model, and a folder. Out: the folder, filled with files that do not depend on how often the job was
killed, by how many processes it was done, or who made which part of it; and a result object.

    plan        what a job is: items, shards, and how to make and check one shard
    job_folder  whether a job may use its folder
    markers     the finished shards, and claims on the unfinished ones
    ranks       which of several processes this is: torchrun, Slurm, job arrays
    engine      doing a job
    executors   starting processes: on this machine or on Ray
    encode, sample, complete    the jobs
"""
