package bmc_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"recast/bmc"
	"recast/inventory"
	"recast/testenv"
)

// book is a Memory that outlives a Fleet.
type book struct {
	mu   sync.Mutex
	open map[string][]bmc.Session
	err  error
}

func (b *book) Sessions(context.Context) (map[string][]bmc.Session, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[string][]bmc.Session{}
	for name, s := range b.open {
		all[name] = append([]bmc.Session(nil), s...)
	}
	return all, b.err
}

func (b *book) SetSessions(_ context.Context, name string, open []bmc.Session) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open == nil {
		b.open = map[string][]bmc.Session{}
	}
	if b.open[name] = open; len(open) == 0 {
		delete(b.open, name)
	}
	return b.err
}

// sessionBMC is the least of a Redfish service, with few places for sessions that
// can be looked at, which it numbers anew after a restart.
type sessionBMC struct {
	*httptest.Server
	mu      sync.Mutex
	places  int
	created string
	next    int
	open    map[string]string // session id to user
	basics  int               // requests with a password
}

func newSessionBMC(t *testing.T, places int) *sessionBMC {
	b := &sessionBMC{places: places, created: "2026-11-22T10:00:00Z", open: map[string]string{}}
	b.Server = httptest.NewTLSServer(b)
	t.Cleanup(b.Close)
	return b
}

func (b *sessionBMC) target() bmc.Target {
	return bmc.InAHurry(bmc.Target{URL: strings.Replace(b.URL, "https://", "redfish://", 1), User: user, Password: password,
		Pin: inventory.DigestOf(b.Certificate().Raw)})
}

// other logs somebody in behind our back.
func (b *sessionBMC) other(user string) (id string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.next++
	id = fmt.Sprint(b.next)
	b.open[id] = user
	return id
}

func (b *sessionBMC) restart(created string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open, b.next, b.created = map[string]string{}, 0, created
}

func (b *sessionBMC) sessions() map[string]string {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[string]string{}
	for id, user := range b.open {
		all[id] = user
	}
	return all
}

func (b *sessionBMC) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	const sessions = "/redfish/v1/SessionService/Sessions"
	link := func(to string) map[string]string { return map[string]string{"@odata.id": to} }
	reply := func(status int, v any) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
	about := func(id string) map[string]any {
		return map[string]any{"@odata.id": sessions + "/" + id, "Id": id, "UserName": b.open[id], "CreatedTime": b.created}
	}
	path := strings.TrimSuffix(r.URL.Path, "/")
	switch {
	case path == "/redfish/v1":
		reply(200, map[string]any{"@odata.id": path, "Systems": link("/redfish/v1/Systems"),
			"Links": map[string]any{"Sessions": link(sessions)}})
		return
	case path == sessions && r.Method == http.MethodPost:
		if len(b.open) >= b.places {
			reply(503, nil)
			return
		}
		b.next++
		id := fmt.Sprint(b.next)
		b.open[id] = user
		w.Header().Set("X-Auth-Token", b.created+" "+id)
		w.Header().Set("Location", b.URL+sessions+"/"+id)
		reply(201, about(id))
		return
	}
	if name, pass, ok := r.BasicAuth(); ok && name == user && pass == password {
		b.basics++
	} else if _, ok := b.open[strings.TrimPrefix(r.Header.Get("X-Auth-Token"), b.created+" ")]; !ok {
		reply(401, nil)
		return
	}
	id := strings.TrimPrefix(path, sessions+"/")
	_, open := b.open[id]
	switch {
	case open && r.Method == http.MethodDelete:
		delete(b.open, id)
		w.WriteHeader(204)
	case open:
		reply(200, about(id))
	case path == "/redfish/v1/Systems":
		reply(200, map[string]any{"@odata.id": path, "Members": []any{link(path + "/1")}, "Members@odata.count": 1})
	case path == "/redfish/v1/Systems/1":
		reply(200, map[string]any{"@odata.id": path, "Id": "1", "PowerState": "On"})
	default:
		reply(404, nil)
	}
}

func look(ctx context.Context, c bmc.Client) error {
	_, err := c.Power(ctx)
	return err
}

// killed is a Fleet that has talked to a BMC and is never closed.
func killed(t *testing.T, memory *book, target bmc.Target) {
	t.Helper()
	f := &bmc.Fleet{Memory: memory}
	if err := f.Do(within(t, 20*time.Second), target, look); err != nil {
		t.Fatal(err)
	}
}

func recalled(t *testing.T, memory *book) *bmc.Fleet {
	t.Helper()
	f := &bmc.Fleet{Memory: memory}
	if err := f.Recall(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestSessionsOfAKilledServerAreRemoved(t *testing.T) {
	t.Parallel()
	for name, places := range map[string]int{"places left": 8, "all places taken": 1} {
		t.Run(name, func(t *testing.T) {
			b, memory := newSessionBMC(t, places), &book{}
			killed(t, memory, b.target())
			f := recalled(t, memory)
			if !f.Owes(b.target().URL) {
				t.Fatal("the session is not on record")
			}
			if err := f.Do(within(t, 20*time.Second), b.target(), look); err != nil {
				t.Fatal(err)
			}
			if open := b.sessions(); len(open) != 1 || open["2"] != user || f.Owes(b.target().URL) {
				t.Errorf("open %v, still owes %v; want the new one alone", open, f.Owes(b.target().URL))
			}
			b.mu.Lock()
			basics := b.basics
			b.mu.Unlock()
			if err := f.Do(within(t, 20*time.Second), b.target(), look); err != nil {
				t.Fatal(err)
			}
			if b.mu.Lock(); b.basics != basics {
				t.Error("it goes on with basic authentication, although there is a place now")
			}
			b.mu.Unlock()
			if err := f.Close(t.Context()); err != nil || len(b.sessions()) != 0 || len(memory.open) != 0 {
				t.Errorf("after close: %v; open %v, on record %v", err, b.sessions(), memory.open)
			}
		})
	}
}

func TestSessionsOfOthersAreLeftAlone(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		created string
		user    string
	}{
		"the BMC gave the number to another user":  {"2026-11-22T10:00:00Z", "somebody"},
		"the BMC gave the number to another login": {"2026-11-22T11:00:00Z", user},
	} {
		t.Run(name, func(t *testing.T) {
			b, memory := newSessionBMC(t, 8), &book{}
			killed(t, memory, b.target())
			b.restart(c.created)
			id := b.other(c.user)
			f := recalled(t, memory)
			if err := f.Do(within(t, 20*time.Second), b.target(), look); err != nil {
				t.Fatal(err)
			}
			if open := b.sessions(); open[id] != c.user || f.Owes(b.target().URL) {
				t.Errorf("open %v; want %s of %s among them", open, id, c.user)
			}
		})
	}
}

func TestASessionThatTheBMCForgotIsNotOnRecord(t *testing.T) {
	t.Parallel()
	b, memory := newSessionBMC(t, 8), &book{}
	f := recalled(t, memory)
	for n := range 3 {
		if n > 0 {
			b.restart(fmt.Sprint("boot ", n))
			b.other("somebody")
		}
		if err := f.Do(within(t, 20*time.Second), b.target(), look); err != nil {
			t.Fatal(err)
		}
	}
	for _, open := range memory.open {
		if len(open) != 1 || !strings.HasSuffix(open[0].URI, "/2") {
			t.Errorf("on record %v, want the one in use", open)
		}
	}
}

func TestALogoutThatFailedStaysOnRecord(t *testing.T) {
	t.Parallel()
	b, memory := newSessionBMC(t, 8), &book{}
	f := &bmc.Fleet{Memory: memory}
	if err := f.Do(within(t, 20*time.Second), b.target(), look); err != nil {
		t.Fatal(err)
	}
	b.Server.CloseClientConnections()
	b.Listener.Close()
	_ = f.Close(within(t, 20*time.Second))
	if len(memory.open) != 1 {
		t.Errorf("on record %v, want the session that could not be closed", memory.open)
	}
}

func TestAMemoryThatFailsStopsNoConversation(t *testing.T) {
	t.Parallel()
	b, memory := newSessionBMC(t, 8), &book{err: errors.New("the disk is full")}
	f := &bmc.Fleet{Memory: memory}
	if err := f.Recall(t.Context()); err == nil {
		t.Error("recall: no error")
	}
	if err := f.Do(within(t, 20*time.Second), b.target(), look); err != nil {
		t.Error(err)
	}
	if err := f.Close(t.Context()); err != nil || len(b.sessions()) != 0 {
		t.Errorf("close: %v, open %v", err, b.sessions())
	}
}

func TestAFleetCostsAWrongPasswordOneLogin(t *testing.T) {
	eachKind(t, func(t *testing.T, _ *testenv.SimMachine, b front, target bmc.Target) {
		f := recalled(t, &book{})
		wrong := target
		wrong.Password = "hunter2"
		for range 3 {
			if err := f.Do(within(t, 20*time.Second), wrong, look); !errors.Is(err, bmc.ErrAuth) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v; want ErrAuth without the password", err)
			}
		}
		if n := b.Count("login"); n != 1 {
			t.Errorf("%d logins, want 1", n)
		}
		for range 3 {
			if err := f.Do(within(t, 20*time.Second), target, look); err != nil {
				t.Errorf("with the right one: %v", err)
			}
		}
		if n := b.Count("login"); n != 2 {
			t.Errorf("%d logins, want 2: a session is kept", n)
		}
	})
}

func TestABusyBMCIsNotAskedBeforeItsTime(t *testing.T) {
	t.Parallel()
	b := newRedfish(t, testenv.RedfishOptions{Machine: &testenv.SimMachine{}})
	f := recalled(t, &book{})
	target := redfishTarget(b)
	if err := f.Do(within(t, 20*time.Second), target, look); err != nil {
		t.Fatal(err)
	}
	b.SetFaults(func(f *testenv.BMCFaults) { f.Busy = true })
	err := f.Do(within(t, 20*time.Second), target, look)
	if !errors.Is(err, bmc.ErrBusy) || bmc.RetryAfter(err) != 5*time.Second {
		t.Fatalf("%v, retry after %s; want 5 s", err, bmc.RetryAfter(err))
	}
	var answer *bmc.AnswerError
	if !errors.As(err, &answer) || !strings.HasSuffix(answer.Code, ".ServiceTemporarilyUnavailable") || answer.Message == "" || answer.Status != 503 {
		t.Errorf("%+v: want what the BMC said", answer)
	}
	reads := b.Count("read")
	if err := f.Do(within(t, time.Second), target, look); !errors.Is(err, bmc.ErrBusy) || b.Count("read") != reads {
		t.Errorf("%v, %d requests", err, b.Count("read")-reads)
	}
	b.SetFaults(func(f *testenv.BMCFaults) { f.Busy = false })
}

// A BMC that is declared no more keeps neither a session of ours nor a record: what is
// open is closed, and what a killed process left there is forgotten.
func TestNothingIsKeptOfABMCThatIsNotDeclaredAnyMore(t *testing.T) {
	stays, goes, away := newSessionBMC(t, 4), newSessionBMC(t, 4), newSessionBMC(t, 4)
	left := strings.TrimPrefix(away.target().URL, "redfish://")
	memory := &book{open: map[string][]bmc.Session{left: {{URI: "/redfish/v1/SessionService/Sessions/7"}}}}
	f := &bmc.Fleet{Memory: memory}
	if err := f.Recall(t.Context()); err != nil {
		t.Fatal(err)
	}
	look := func(ctx context.Context, c bmc.Client) error { _, err := c.Power(ctx); return err }
	for _, b := range []*sessionBMC{stays, goes} {
		if err := f.Do(t.Context(), b.target(), look); err != nil {
			t.Fatal(err)
		}
	}
	f.Retain(t.Context(), []string{stays.target().URL, "no url"})
	open, _ := memory.Sessions(t.Context())
	if len(open) != 1 || len(open[strings.TrimPrefix(stays.target().URL, "redfish://")]) != 1 {
		t.Errorf("on record are %v, want the session of the BMC that is still declared", open)
	}
	if len(stays.sessions()) != 1 || len(goes.sessions()) != 0 {
		t.Errorf("open are %v and %v", stays.sessions(), goes.sessions())
	}
	if err := f.Do(t.Context(), goes.target(), func(ctx context.Context, c bmc.Client) error {
		f.Retain(t.Context(), []string{stays.target().URL})
		return look(ctx, c)
	}); err != nil {
		t.Errorf("what is in use is left alone: %v", err)
	}
	if err := f.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if open, _ := memory.Sessions(t.Context()); len(open) != 0 || len(goes.sessions()) != 0 {
		t.Errorf("at last on record are %v, open %v", open, goes.sessions())
	}
}
