package testenv

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// labControlFile is the socket at which a lab's supervisor is asked.
const labControlFile = "control.sock"

// LabControl is that socket; who may ask is who may open it.
func LabControl(dir string) string { return filepath.Join(dir, labControlFile) }

// LabAsk is what a lab is asked to do with its machines.
type LabAsk struct {
	Machines []string `json:"machines"`
	// Faults are added to those that a machine has; "none" ends what it has. Without
	// any, nothing changes.
	Faults []string `json:"faults,omitempty"`
	// For how long; 0 until they are ended.
	For time.Duration `json:"for,omitempty"`
	// Region of a machine's first disk, by GPT name or number, and the byte in it that
	// is flipped.
	Region string `json:"region,omitempty"`
	Offset int64  `json:"offset,omitempty"`
}

// LabFaults are those of one machine, in words.
type LabFaults struct {
	Machine string   `json:"machine"`
	Faults  []string `json:"faults"`
	// Link counts the machine's frames, while it is a bad one.
	Link *FrameCount `json:"link,omitempty"`
}

// labControl serves a rack's faults, resets and logs.
type labControl struct {
	rack *Rack

	mu     sync.Mutex
	timers map[string]*time.Timer // that end the faults of a machine
	closed bool
}

// serveLabControl serves until the context ends; ended is then closed.
func serveLabControl(ctx context.Context, dir string, rack *Rack) (ended <-chan struct{}, err error) {
	path := LabControl(dir)
	// A socket's path ends at 107 bytes; a short one leads to the same folder.
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("serve the lab's control: %w", err)
	}
	folder, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("serve the lab's control: %w", err)
	}
	old := syscall.Umask(0o077)
	l, err := net.Listen("unix", fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), labControlFile))
	syscall.Umask(old)
	if err := errors.Join(err, folder.Close()); err != nil {
		return nil, fmt.Errorf("serve the lab's control: %w", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // by a path that is no more
	c := &labControl{rack: rack, timers: map[string]*time.Timer{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /faults", c.answer(c.faults))
	mux.HandleFunc("POST /reset", c.answer(c.reset))
	mux.HandleFunc("POST /tamper", c.answer(c.tamper))
	mux.HandleFunc("POST /requests", c.answer(c.requests))
	server := &http.Server{Handler: mux}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(l)
		c.close()
	}()
	context.AfterFunc(ctx, func() { _ = server.Close() })
	return done, nil
}

func (c *labControl) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, t := range c.timers {
		t.Stop()
	}
}

func (c *labControl) answer(do func(context.Context, LabAsk) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var ask LabAsk
		err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(&ask)
		var out any
		if err == nil {
			out, err = do(r.Context(), ask)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_ = json.NewEncoder(w).Encode(out)
	}
}

// faults changes those of the machines, where all of them can have them, and tells
// what each has then; without machines it tells of all that have any.
func (c *labControl) faults(_ context.Context, ask LabAsk) (any, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.New("the lab ends")
	}
	var add []Fault
	none := false
	for _, text := range ask.Faults {
		if text == "none" {
			none = true
			continue
		}
		f, err := ParseFault(text)
		if err != nil {
			return nil, err
		}
		add = append(add, f)
	}
	names := ask.Machines
	for _, name := range names {
		m, err := c.rack.member(name)
		if err != nil {
			return nil, err
		}
		for _, f := range add {
			if err := f.fits(name, m.spec.BMC); err != nil {
				return nil, err
			}
		}
	}
	if len(names) == 0 {
		for _, m := range c.rack.members {
			if len(m.faults) > 0 || !m.cable.good() {
				names = append(names, m.spec.Name)
			}
		}
	}
	out := []LabFaults{}
	for _, name := range names {
		if len(ask.Faults) > 0 {
			if err := c.change(name, add, none, ask.For); err != nil {
				return nil, err
			}
		}
		has, err := c.rack.FaultsOf(name)
		if err != nil {
			return nil, err
		}
		texts := []string{}
		for _, f := range has {
			texts = append(texts, f.String())
		}
		said := LabFaults{Machine: name, Faults: texts}
		if count, ok := c.rack.CableCount(name); ok {
			said.Link = &count
		}
		out = append(out, said)
	}
	return out, nil
}

// change one machine; the lock is held.
func (c *labControl) change(name string, add []Fault, none bool, length time.Duration) error {
	before, err := c.rack.FaultsOf(name)
	if err != nil {
		return err
	}
	all := addFaults(before, add)
	if none {
		all = add
	}
	if err := c.rack.SetFaults(name, all); err != nil {
		return err
	}
	if t := c.timers[name]; t != nil {
		t.Stop()
		delete(c.timers, name)
	}
	if length > 0 {
		c.timers[name] = time.AfterFunc(length, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if !c.closed {
				_ = c.rack.SetFaults(name, nil) // it is there, and nothing always fits
			}
		})
	}
	return nil
}

// addFaults puts new ones behind those of another name.
func addFaults(before, add []Fault) []Fault {
	var all []Fault
	for _, b := range before {
		replaced := false
		for _, a := range add {
			replaced = replaced || a.Name == b.Name
		}
		if !replaced {
			all = append(all, b)
		}
	}
	return append(all, add...)
}

func (c *labControl) reset(ctx context.Context, ask LabAsk) (any, error) {
	for _, name := range ask.Machines {
		if err := c.rack.Reset(ctx, name); err != nil {
			return nil, err
		}
	}
	return struct{}{}, nil
}

// Tampered is the byte of a disk that was flipped.
type Tampered struct {
	Disk string `json:"disk"`
	At   int64  `json:"at"` // from the disk's beginning
}

func (c *labControl) tamper(_ context.Context, ask LabAsk) (any, error) {
	if len(ask.Machines) != 1 {
		return nil, errors.New("want one machine")
	}
	return c.rack.Tamper(ask.Machines[0], ask.Region, ask.Offset)
}

func (c *labControl) requests(_ context.Context, ask LabAsk) (any, error) {
	if len(ask.Machines) != 1 {
		return nil, errors.New("want one machine")
	}
	return c.rack.RequestsOf(ask.Machines[0])
}

// AskLab asks the supervisor of the lab in dir: /faults, /reset, /tamper or /requests.
func AskLab(ctx context.Context, dir, what string, ask LabAsk, out any) error {
	raw, err := json.Marshal(ask)
	if err != nil {
		return err
	}
	folder, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("ask the lab: %w", err)
	}
	defer folder.Close()
	client := &http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d/%s", folder.Fd(), labControlFile))
		}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://lab"+what, bytes.NewReader(raw))
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if errors.Is(err, os.ErrPermission) {
		return errors.New("ask the lab: it is another user's: use sudo")
	}
	if err != nil {
		return fmt.Errorf("ask the lab: %w", err)
	}
	defer resp.Body.Close()
	raw, err = io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("ask the lab: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(string(bytes.TrimSpace(raw)))
	}
	return json.Unmarshal(raw, out)
}
