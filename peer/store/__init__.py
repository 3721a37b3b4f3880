"""Published objects on the disk: rows in SQLite, large contents in safetensors files. Files in import order:

fs              the calls that change the disk, and their errors in the grid's words
waiting         waiting for threads to the end of a step; locks by key
contents        what an object is made of, and the safetensors layout of it
blob_writer     one blob file while it is written
blobs           the folder of blob files; what is read has been checked
mark            how many changes were acknowledged, so that lost ones are noticed
sqlite_errors   SQLite's errors in the grid's words
database        one writing connection with group commit, one reading connection
rows            an object's row, there and back; the schema's migrations
writer          an object's bytes on their way in
payload         and on their way out
folder          the folder: its lock, and the space kept aside
store           Store: publish, get, delete, tag, find
"""
