"""Published objects on the disk: rows in SQLite, large contents in safetensors files. Files in import order:

fs              the calls that change the disk, and their errors in the grid's words
waiting         waiting for threads to the end of a step; locks by key
contents        what an object is made of, and the safetensors layout of it
hashes          the name of a blob, and the hashes of its blocks
blob_writer     one blob file while it is written
blob_file       one blob file while it is read, checked block by block
blobs           the folder of blob files
mark            how many changes were acknowledged, so that lost ones are noticed
sqlite_errors   SQLite's errors in the grid's words
commits         many changes, one commit
database        one writing connection with group commit, one reading connection
journal         what is remembered of moves, as rows
rows            an object's row, there and back; the schema's migrations
writer          an object's bytes on their way in
payload         and on their way out
open_files      for how many, of whom, at once
folder          the folder: its lock, and the space kept aside
removal         objects away: row first, then the blob
publishing      objects in: blob first, then the row
moves           offers that outlive the process, and arrivals that are still to be confirmed
upkeep          checking everything, sweeping rubbish
reading         what is asked and changes nothing: objects, their bytes, which there are
store           Store: that, and publish, delete, tag
"""
