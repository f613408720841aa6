package agent

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"recast/inventory"
)

// newAgent is an agent on a simulated machine whose disk is at path.
func newAgent(t testing.TB, s *fakeServer, path string) *Agent {
	t.Helper()
	return &Agent{
		Args:    Args{URL: s.URL, CA: s.ca, MAC: "52:54:00:00:00:05", Nonce: "n1"},
		Machine: simMachine{path: path, id: inventory.DiskID{Serial: "S1"}},
		BootID:  "boot-1", Log: t.Logf, ReportEvery: 10 * time.Millisecond, wait: noWait,
	}
}

// run gives up on an agent that never ends.
func run(t testing.TB, a *Agent) (Outcome, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	return a.Run(ctx)
}

func writeOrder(p *packed, size int64, volume []byte, url string) inventory.Order {
	return inventory.Order{Kind: inventory.OrderWrite, Job: &inventory.Job{
		Kind: inventory.JobWrite, Machine: "m1", Fence: 7, Attempt: 2, Image: p.job(url),
		Disk:   inventory.DiskID{Serial: "S1", Size: size, LogicalBlockSize: 512},
		Config: &inventory.JobConfig{Digest: inventory.DigestOf(volume), Size: int64(len(volume)), Label: "CIDATA"},
	}}
}

func TestArmedMachineClaimsWritesAndReports(t *testing.T) {
	p := packImage(t, gptImage(t, 6*MiB, 1))
	b, s := serveBytes(t, p), startServer(t)
	_, path := diskFile(t, 12*MiB, 0xA5)
	s.volume = bytes.Repeat([]byte("config! "), MiB/8)
	s.orders = []inventory.Order{{Kind: inventory.OrderWait, Reason: "waiting for a wave"}, writeOrder(p, 12*MiB, s.volume, b.URL)}
	out, err := run(t, newAgent(t, s, path))
	if err != nil || out.Kind != inventory.OrderLocal {
		t.Fatalf("outcome %+v, error %v; want a start from disk", out, err)
	}
	have, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := wantDisk(t, p, 12*MiB, 0xA5, s.volume); !bytes.Equal(have, want) {
		t.Error(firstDifference(have, want))
	}
	if len(s.claims) != 1 || s.claims[0].Serial != "SN1" || s.claims[0].MAC != "52:54:00:00:00:05" || s.claims[0].BootID != "boot-1" {
		t.Errorf("claims %+v", s.claims)
	}
	if len(s.facts) != 1 || s.facts[0].Boot.PXEInterface != "52:54:00:00:00:05" {
		t.Errorf("facts %+v", s.facts)
	}
	seen := map[int64]bool{}
	for i, r := range s.told() {
		again := seen[r.Seq]
		seen[r.Seq] = true
		if again || r.Seq <= 0 || r.Fence != 7 || r.Attempt != 2 || r.BootID != "boot-1" {
			t.Errorf("report %d: %+v", i, r)
		}
	}
	last := s.ended(t)
	if last.Step != inventory.AgentDone || last.ReadBack.String() != p.m.Digest.String() || last.Table == "" || !last.Erased || last.Error != "" {
		t.Errorf("last report %+v", last)
	}
}

func TestDiscoveryPostsOnceAndObeys(t *testing.T) {
	s := startServer(t)
	_, path := diskFile(t, 4*MiB, 0xA5)
	s.orders = []inventory.Order{{Kind: inventory.OrderWait}, {Kind: inventory.OrderWait}, {Kind: inventory.OrderLocal, Reason: "nobody declared it"}}
	a := newAgent(t, s, path)
	a.Args.Nonce, a.Args.Discover = "", "stranger"
	out, err := run(t, a)
	if err != nil || out.Kind != inventory.OrderLocal || out.Reason != "nobody declared it" {
		t.Fatalf("outcome %+v, error %v", out, err)
	}
	if len(s.facts) != 1 || len(s.claims) != 0 {
		t.Errorf("%d inventories and %d claims", len(s.facts), len(s.claims))
	}
}

func TestRefusedClaimEndsTheBoot(t *testing.T) {
	s := startServer(t)
	a := newAgent(t, s, "/nonexistent")
	a.Args.Nonce = "n2"
	_, err := run(t, a)
	if err == nil || !strings.Contains(err.Error(), "the nonce is not this machine's") {
		t.Errorf("error %v, want the server's reason", err)
	}
	if len(s.claims) != 1 {
		t.Errorf("claimed %d times", len(s.claims))
	}
}

func TestServerTroubleIsRetried(t *testing.T) {
	s := startServer(t)
	n := map[string]int{}
	s.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if n[r.URL.Path]++; n[r.URL.Path] < 3 {
			if n[r.URL.Path] == 1 {
				panic(http.ErrAbortHandler) // the connection breaks
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	}
	s.orders = []inventory.Order{{Kind: inventory.OrderWait}, {Kind: inventory.OrderPowerOff}}
	out, err := run(t, newAgent(t, s, "/nonexistent"))
	if err != nil || out.Kind != inventory.OrderPowerOff {
		t.Fatalf("outcome %+v, error %v", out, err)
	}
}

func TestAnUnreachableServerEndsPatience(t *testing.T) {
	s := startServer(t)
	s.Close()
	a := newAgent(t, s, "/nonexistent")
	a.Patience = time.Nanosecond
	if _, err := run(t, a); err == nil || !strings.Contains(err.Error(), "no success in") {
		t.Errorf("error %v", err)
	}
}

func TestFailedJobIsReportedAndNotRepeated(t *testing.T) {
	p := packImage(t, gptImage(t, 6*MiB, 1))
	b, s := serveBytes(t, p), startServer(t)
	b.spoil = func(kind string, off int64, body []byte) []byte {
		at := p.m.Chunks[2].Offset + 100 - off
		if kind == "pack" && at >= 0 && at < int64(len(body)) {
			body[at] ^= 1
		}
		return body
	}
	_, path := diskFile(t, 12*MiB, 0xA5)
	s.volume = make([]byte, MiB)
	order := writeOrder(p, 12*MiB, s.volume, b.URL)
	s.orders = []inventory.Order{order, order, order, {Kind: inventory.OrderReboot}}
	out, err := run(t, newAgent(t, s, path))
	if err != nil || out.Kind != inventory.OrderReboot {
		t.Fatalf("outcome %+v, error %v", out, err)
	}
	last := s.ended(t)
	if last.Step != inventory.AgentFailed || last.BadFrame == nil || *last.BadFrame != 2 || !last.Erased || last.ReadBack != "" {
		t.Errorf("last report %+v", last)
	}
	failed := 0
	for _, r := range s.told() {
		if r.Step == inventory.AgentFailed {
			failed++
		}
	}
	if failed != 1 {
		t.Errorf("%d jobs failed, want the same job begun once", failed)
	}
}

// gate holds the fetch of image bytes until it is opened.
func gate(b *bytesServer) (open func()) {
	ch := make(chan struct{})
	b.refuse = func(kind string) int {
		if kind == "pack" {
			<-ch
		}
		return 0
	}
	return sync.OnceFunc(func() { close(ch) })
}

func TestAbortStopsTheJob(t *testing.T) {
	for _, tt := range []struct {
		name  string
		abort func(s *fakeServer)
		want  string
		ends  bool
	}{
		{"by a report's reply", func(s *fakeServer) {
			s.reply = func(r inventory.Report) inventory.ReportReply {
				return inventory.ReportReply{Abort: r.Step != inventory.AgentFailed, Reason: "a newer fence", LeaseSeconds: 300}
			}
		}, "the server stopped the job: a newer fence", false},
		{"by a refused report", func(s *fakeServer) {
			s.answer = func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path == reportPath {
					http.Error(w, `{"detail":"another agent holds this machine"}`, http.StatusConflict)
					return true
				}
				return false
			}
		}, "another agent holds this machine", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := packImage(t, gptImage(t, 6*MiB, 1))
			b, s := serveBytes(t, p), startServer(t)
			defer gate(b)()
			_, path := diskFile(t, 12*MiB, 0xA5)
			s.volume = make([]byte, MiB)
			s.orders = []inventory.Order{writeOrder(p, 12*MiB, s.volume, b.URL), {Kind: inventory.OrderReboot}}
			tt.abort(s)
			out, err := run(t, newAgent(t, s, path))
			if tt.ends {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("error %v, want %q", err, tt.want)
				}
				return
			}
			if err != nil || out.Kind != inventory.OrderReboot {
				t.Fatalf("outcome %+v, error %v", out, err)
			}
			if last := s.ended(t); last.Step != inventory.AgentFailed || !strings.Contains(last.Error, tt.want) {
				t.Errorf("last report %+v", last)
			}
		})
	}
}

// A server that has moved on when the last report comes says what is next, not the agent.
func TestAnAbortOfTheLastReportEndsNoBootAsDone(t *testing.T) {
	p := packImage(t, gptImage(t, 6*MiB, 1))
	b, s := serveBytes(t, p), startServer(t)
	_, path := diskFile(t, 12*MiB, 0xA5)
	s.volume = make([]byte, MiB)
	s.orders = []inventory.Order{writeOrder(p, 12*MiB, s.volume, b.URL), {Kind: inventory.OrderReboot, Reason: "attempt 3 begins"}}
	s.reply = func(r inventory.Report) inventory.ReportReply {
		return inventory.ReportReply{Abort: r.Step == inventory.AgentDone, Reason: "a newer attempt has begun", LeaseSeconds: 300}
	}
	out, err := run(t, newAgent(t, s, path))
	if err != nil || out.Kind != inventory.OrderReboot || out.Reason != "attempt 3 begins" {
		t.Errorf("outcome %+v, %v", out, err)
	}
}

func TestOnlyThePinnedAuthorityIsTrusted(t *testing.T) {
	s, other := startServer(t), startServer(t)
	for _, tt := range []struct {
		name string
		pin  inventory.Digest
		host string
		ok   bool
	}{
		{"pinned", s.ca, "127.0.0.1", true},
		{"another CA", other.ca, "127.0.0.1", false},
		{"the leaf itself", inventory.DigestOf(s.TLS.Certificates[0].Certificate[0]), "127.0.0.1", false},
		{"another host", s.ca, "localhost", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := NewClient(strings.Replace(s.URL, "127.0.0.1", tt.host, 1), tt.pin)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			_, err = c.Claim(context.Background(), inventory.Claim{Nonce: "n1"})
			if (err == nil) != tt.ok {
				t.Errorf("error %v, want success %t", err, tt.ok)
			}
			if err != nil && final(err) {
				t.Errorf("%v counts as the server's answer", err)
			}
		})
	}
	if len(s.claims) != 1 {
		t.Errorf("%d claims reached the server, want 1", len(s.claims))
	}
}

func TestRunEndsWithItsContext(t *testing.T) {
	s := startServer(t)
	s.orders = []inventory.Order{{Kind: inventory.OrderWait}}
	ctx, cancel := context.WithCancel(context.Background())
	s.answer = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/agent/v1/order" {
			cancel()
		}
		return false
	}
	if _, err := newAgent(t, s, "/nonexistent").Run(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
