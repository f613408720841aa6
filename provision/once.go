package provision

import "sync"

// once keeps what takes reading an image to find, by key. The first who asks has it made,
// whoever asks for the same meanwhile waits for that, and nobody else waits.
type once[V any] struct {
	most int // are kept; 0: all

	mu   sync.Mutex
	made map[string]*making[V]
}

type making[V any] struct {
	sync.Once
	value V
	err   error
}

// get what was made for the key, or have it made. An error is for those who waited for
// it, and kept for nobody.
func (o *once[V]) get(key string, read func() (V, error)) (V, error) {
	o.mu.Lock()
	m := o.made[key]
	if m == nil {
		if o.made == nil || o.most > 0 && len(o.made) >= o.most {
			o.made = map[string]*making[V]{}
		}
		m = &making[V]{}
		o.made[key] = m
	}
	o.mu.Unlock()
	m.Do(func() { m.value, m.err = read() })
	if m.err != nil {
		o.mu.Lock()
		if o.made[key] == m {
			delete(o.made, key)
		}
		o.mu.Unlock()
	}
	return m.value, m.err
}
