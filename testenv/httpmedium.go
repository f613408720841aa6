package testenv

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path"
	"sync"
	"time"
)

// httpMedium is a disc image on a web server, read as BMCs do: in ranges, when
// the machine asks.
type httpMedium struct {
	url            string
	user, password string
	client         *http.Client

	mu   sync.Mutex
	size int64
	tag  string // a strong ETag: the image must not change while it is in
	read int64
}

var _ Medium = (*httpMedium)(nil)

// httpMediumTakes bounds one range.
const httpMediumTakes = 30 * time.Second

func (m *httpMedium) Name() string { return path.Base(m.url) }

func (m *httpMedium) Size() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.size
}

// open asks for the size. A server without ranges is of no use.
func (m *httpMedium) open(ctx context.Context) error {
	response, err := m.ask(ctx, 0, 1)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	var first, last, size int64
	if _, err := fmt.Sscanf(response.Header.Get("Content-Range"), "bytes %d-%d/%d", &first, &last, &size); err != nil {
		return fmt.Errorf("open medium %q: Content-Range %q", m.url, response.Header.Get("Content-Range"))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.size, m.tag = size, response.Header.Get("ETag")
	return nil
}

func (m *httpMedium) ask(ctx context.Context, at, n int64) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, m.url, nil)
	if err != nil {
		return nil, fmt.Errorf("read medium: %w", err)
	}
	r.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", at, at+n-1))
	if m.user != "" {
		r.SetBasicAuth(m.user, m.password)
	}
	response, err := m.client.Do(r)
	if err != nil {
		return nil, fmt.Errorf("read medium: %w", err)
	}
	if response.StatusCode != http.StatusPartialContent {
		response.Body.Close()
		return nil, fmt.Errorf("read medium %q: %s, want 206 to a range", m.url, response.Status)
	}
	return response, nil
}

// ReadAt implements io.ReaderAt by one request.
func (m *httpMedium) ReadAt(p []byte, at int64) (int, error) {
	m.mu.Lock()
	size, tag := m.size, m.tag
	m.mu.Unlock()
	if at < 0 || at >= size {
		return 0, io.EOF
	}
	n := min(int64(len(p)), size-at)
	if n == 0 {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), httpMediumTakes)
	defer cancel()
	response, err := m.ask(ctx, at, n)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.Header.Get("ETag") != tag {
		return 0, fmt.Errorf("read medium %q: it has changed", m.url)
	}
	got, err := io.ReadFull(response.Body, p[:n])
	m.mu.Lock()
	m.read += int64(got)
	m.mu.Unlock()
	if err != nil {
		return got, fmt.Errorf("read medium %q: %w", m.url, err)
	}
	if got < len(p) {
		return got, io.EOF
	}
	return got, nil
}

// redfishNullable is a word that may be null, and knows whether it was sent.
type redfishNullable struct {
	sent  bool
	value *string
}

func (n *redfishNullable) UnmarshalJSON(raw []byte) error {
	n.sent = true
	if err := json.Unmarshal(raw, &n.value); err != nil {
		return errors.New("want a word or null")
	}
	return nil
}
