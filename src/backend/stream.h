/* One direction of a byte stream between a file descriptor and the thread that runs a machine.
 *
 *   fd ── thread: read() ──▶ ring ──▶ stream_take()        stream_in
 *   fd ◀─ thread: write() ── ring ◀── stream_put()         stream_out
 *
 * A thread of its own reads or writes, blocking, so that the descriptor may be anything (a terminal, a
 * pipe, a file) and its flags, which other processes share, stay as they are.  Nothing is lost: who
 * puts faster than the descriptor takes is told to wait.
 *
 * `event` is called on the stream's thread whenever there is something new: bytes or the end of a
 * stream_in, room in a stream_out or that nobody reads it any more.
 */
#ifndef TAKT_BACKEND_STREAM_H
#define TAKT_BACKEND_STREAM_H

#include "base/error.h"
#include "base/types.h"

struct stream;

/* The descriptor stays the caller's and open as long as the stream.  -ENOMEM, -EAGAIN. */
struct stream *stream_in_open(int fd, void (*event)(void *data), void *data, struct error *err);
struct stream *stream_out_open(int fd, void (*event)(void *data), void *data, struct error *err);

/* Takes at most `len` bytes; 0: there are none now.  Any thread. */
size_t stream_take(struct stream *s, void *buf, size_t len);
bool stream_waiting(struct stream *s); /* whether there are some */
/* Whether all was taken and no more will come. */
bool stream_ended(struct stream *s);

/* Puts as many bytes as there is room for and returns how many; to one that is broken, all. */
size_t stream_put(struct stream *s, const void *buf, size_t len);
/* Whether a write failed, as to a pipe that nobody reads. */
bool stream_broken(struct stream *s);

/* Out: waits until all is written or the stream is broken.  In: drops what was not taken; a thread
 * that is still in read() is left behind with the stream's memory and calls nothing any more. */
void stream_close(struct stream *s);

#endif
