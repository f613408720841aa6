package store

import (
	"context"
	"strings"
	"sync"
)

// watchBuffer is how many changes may wait for a watch's reader.
const watchBuffer = 16384

// watcher carries changes from an engine to one reader. The engine adds and
// never waits; a goroutine per watcher sends.
type watcher struct {
	prefix string
	out    chan Event
	limit  int

	mu    sync.Mutex
	queue []Event
	over  bool
	err   error         // why the watch ended; valid when ended is closed
	ended chan struct{} // the engine or an overflow ended the watch
	once  sync.Once
	more  chan struct{} // the queue is no longer empty
}

func newWatcher(prefix string, limit int) *watcher {
	if limit <= 0 {
		limit = watchBuffer
	}
	return &watcher{
		prefix: prefix,
		out:    make(chan Event, 64),
		limit:  limit,
		ended:  make(chan struct{}),
		more:   make(chan struct{}, 1),
	}
}

// add queues those changes that the watcher asked for.
func (w *watcher) add(events []Event) {
	w.mu.Lock()
	if w.over {
		w.mu.Unlock()
		return
	}
	was := len(w.queue)
	for _, e := range events {
		if strings.HasPrefix(e.Key, w.prefix) {
			w.queue = append(w.queue, e)
		}
	}
	n := len(w.queue)
	w.mu.Unlock()
	switch {
	case n > w.limit:
		w.end(ErrResync)
	case n > was:
		select {
		case w.more <- struct{}{}:
		default:
		}
	}
}

// end closes the reader's channel soon, even when the reader stands still.
func (w *watcher) end(err error) {
	w.once.Do(func() {
		w.mu.Lock()
		w.err = err
		w.queue = nil
		w.over = true
		w.mu.Unlock()
		close(w.ended)
	})
}

// run sends the snapshot, its end, then changes, until ctx or the watch ends.
func (w *watcher) run(ctx context.Context, snapshot []*Record, revision int64) {
	defer close(w.out)
	send := func(e Event) bool {
		select {
		case <-w.ended:
			return false
		default:
		}
		select {
		case w.out <- e:
			return true
		case <-w.ended:
		case <-ctx.Done():
			w.end(nil)
		}
		return false
	}
	for i, r := range snapshot {
		snapshot[i] = nil
		if !send(Event{Record: *r}) {
			return
		}
	}
	if !send(Event{Record: Record{Revision: revision}, Synced: true}) {
		return
	}
	for {
		w.mu.Lock()
		queue := w.queue
		w.queue = nil
		w.mu.Unlock()
		// What is being sent counts no more against the limit: a reader that
		// never reads still falls behind by the limit and one queue.
		for _, e := range queue {
			if !send(e) {
				return
			}
		}
		if len(queue) > 0 {
			continue
		}
		select {
		case <-w.more:
		case <-w.ended:
			return
		case <-ctx.Done():
			w.end(nil)
			return
		}
	}
}

func (w *watcher) watch() Watch {
	return Watch{Events: w.out, Err: func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.err
	}}
}
