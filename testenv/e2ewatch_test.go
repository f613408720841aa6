package testenv

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"recast/inventory"
)

// storyView is what the operator API's stream says of a machine.
type storyView struct {
	Name, Sync, SyncWhy, Waiting string
	Wanted, WantedRendered       inventory.Digest
	Status                       struct {
		Phase, Step, Health      string
		Running, RunningRendered inventory.Digest
		Attempt, Restarts        int
		LastError, NextAction    string
		LastSeen, Power          string
		Identity                 inventory.Identity
		FailedImage              inventory.Digest
		Evidence                 struct{ Level, Detail string }
		Hold                     *struct{ Owner, Reason string }
		Findings                 []string
		Progress                 *struct{ Done, Total, Written int64 }
		TPM                      *struct {
			Quote *struct {
				Nonce string
				Log   inventory.Digest
				PCRs  []inventory.PCR
			}
		}
		Moved *struct{ Fetched, Written int64 }
		Gate  *struct{ Step, Verdict string }
	}
}

func (v storyView) String() string {
	st := v.Status
	return fmt.Sprintf("%s %s/%s attempt %d, %s (%s), %s, error %q, next %q, waiting %q, findings %q",
		v.Name, st.Phase, st.Step, st.Attempt, v.Sync, v.SyncWhy, st.Health, st.LastError, st.NextAction, v.Waiting, st.Findings)
}

// storyWatch follows a server's stream of changes, over its restarts.
type storyWatch struct {
	context string // file
	stop    context.CancelFunc
	done    chan struct{}

	mu      sync.Mutex
	views   map[string]storyView
	changed chan struct{} // closed and renewed with each change
}

func newStoryWatch(context string) *storyWatch {
	w := &storyWatch{context: context, done: make(chan struct{}), views: map[string]storyView{}, changed: make(chan struct{})}
	w.start()
	return w
}

func (w *storyWatch) start() {
	ctx, cancel := context.WithCancel(context.Background())
	w.stop = cancel
	go func() {
		defer close(w.done)
		again := time.NewTicker(200 * time.Millisecond)
		defer again.Stop()
		for ctx.Err() == nil {
			_ = w.follow(ctx) // the server is away, or not there yet
			select {
			case <-again.C:
			case <-ctx.Done():
			}
		}
	}()
}

func (w *storyWatch) close() {
	w.stop()
	<-w.done
}

func (w *storyWatch) follow(ctx context.Context) error {
	raw, err := os.ReadFile(w.context)
	if err != nil {
		return err
	}
	var c struct{ URL, CA, TokenFile string }
	if err := json.Unmarshal(raw, &c); err != nil {
		return err
	}
	token, err := os.ReadFile(c.TokenFile)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(c.CA))
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}}
	defer client.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL+"/api/v1/watch", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, osMiB)
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		var v storyView
		if !ok || json.Unmarshal([]byte(data), &v) != nil || v.Name == "" {
			continue
		}
		w.mu.Lock()
		w.views[v.Name] = v
		close(w.changed)
		w.changed = make(chan struct{})
		w.mu.Unlock()
	}
	return lines.Err()
}

// await waits until ok likes what is known of a machine.
func (w *storyWatch) await(ctx context.Context, name string, within time.Duration, ok func(storyView) bool) (storyView, error) {
	deadline := time.NewTimer(within)
	defer deadline.Stop()
	for {
		w.mu.Lock()
		v, known := w.views[name]
		changed := w.changed
		w.mu.Unlock()
		if known && ok(v) {
			return v, nil
		}
		select {
		case <-changed:
		case <-deadline.C:
			return v, fmt.Errorf("not within %v", within.Round(time.Second))
		case <-ctx.Done():
			return v, ctx.Err()
		}
	}
}

// forget what was seen, as when the server knows nothing any more.
func (w *storyWatch) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.views = map[string]storyView{}
}
