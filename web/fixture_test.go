package web

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"recast/bmc"
	"recast/console"
	"recast/image"
	"recast/inventory"
	"recast/ipxe"
	"recast/pack"
	"recast/provision"
	"recast/store"
)

const metricsToken = "fedcba9876543210fedcba9876543210"
const operatorToken = "0123456789abcdef0123456789abcdef"

// site is a whole server over a fake BMC: a real store, image store and engine
// behind the two real handlers.
type site struct {
	*Server
	dir       string
	bmc       *bmc.Fake
	boot, api *httptest.Server
	image     image.Info
	log       logBuffer
	waiting   atomic.Int64 // orders asked for and not answered
	mu        sync.Mutex
	seen      []inventory.Observation
}

// logBuffer is a log that may be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (s *site) observed() []inventory.Observation {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]inventory.Observation(nil), s.seen...)
}

func newSite(t testing.TB) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), bmc: &bmc.Fake{Picture: []byte("\x89PNG of a screen")}}
	log := slog.New(slog.NewTextHandler(&s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	ramdisk := filepath.Join(s.dir, "ramdisk")
	if err := os.MkdirAll(filepath.Join(ramdisk, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"vmlinuz": "kernel", "initrd.img": "ramdisk", ".hidden": "hidden", "below/x": "below"} {
		if err := os.WriteFile(filepath.Join(ramdisk, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	st, err := store.OpenBolt(filepath.Join(s.dir, "recast.db"), store.BoltOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	images, err := image.Open(filepath.Join(s.dir, "images"), image.Options{Log: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { images.Close() })
	ctx, cancel := context.WithCancel(context.Background())
	engine, err := provision.Open(ctx, provision.Config{Store: st, Images: images, KeyFile: filepath.Join(s.dir, "key"),
		Address:   func(string) (netip.Addr, bool) { return netip.MustParseAddr("127.0.0.1"), true },
		AgentPort: 8443, BootPort: 8080, SoftOff: -1, Dial: s.bmc.Dial, Log: log,
		Ramdisk: func(inventory.Arch) provision.RamdiskFiles {
			return provision.RamdiskFiles{Kernel: RamdiskPath + "vmlinuz", Initrd: RamdiskPath + "initrd.img"}
		}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); engine.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	s.Server = &Server{Engine: engine, Images: images, Scripts: &ipxe.Handler{Booter: engine, Port: 8080, Observe: engine.Observe, Log: log},
		Ramdisk: http.Dir(ramdisk), OperatorToken: operatorToken, MetricsToken: metricsToken,
		Capture: func(_ context.Context, m *inventory.Machine, w io.Writer) error {
			_, err := io.WriteString(w, "packets of "+m.Name)
			return err
		},
		Metrics: func(w io.Writer, v StatusReply) error { return json.NewEncoder(w).Encode(v) }, Version: "test", ImageMaxSize: 64 << 20, Log: log,
		Observe: func(o inventory.Observation) {
			s.mu.Lock()
			s.seen = append(s.seen, o)
			s.mu.Unlock()
			engine.Observe(o)
		}}
	s.Consoles = &console.Hub{Dir: filepath.Join(s.dir, "consoles"), Open: func(context.Context, string, bool) (console.Line, error) {
		return nil, errors.New("no line here")
	}}
	if err := s.Consoles.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); s.Consoles.Wait() })
	api := s.Server.API()
	s.boot, s.api = httptest.NewServer(s.Boot()), httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/agent/v1/order" {
			s.waiting.Add(1)
			defer s.waiting.Add(-1)
		}
		api.ServeHTTP(w, r)
	}))
	t.Cleanup(s.boot.Close)
	t.Cleanup(s.api.Close)
	return s
}

// disk is a GPT image of n MiB; seed makes it another one.
func disk(t testing.TB, n int, seed uint64) []byte {
	t.Helper()
	size := int64(n) * pack.MiB
	first, last, err := pack.FormatGPT(size, 512, pack.MustGUID("11111111-2222-4333-8444-555555555555"), []pack.Partition{{
		Type: pack.TypeLinux.String(), GUID: "AAAAAAAA-2222-4333-8444-555555555555", Name: "root",
		Start: pack.MiB, End: size - pack.MiB}})
	if err != nil {
		t.Fatal(err)
	}
	img := make([]byte, size)
	copy(img, first)
	copy(img[size-pack.MiB:], last)
	rng := rand.New(rand.NewPCG(seed, 2))
	for i := pack.MiB; i < 2*pack.MiB; i++ {
		img[i] = byte(rng.Uint32())
	}
	return img
}

// send asks the API; a body that is no reader is sent as JSON.
func (s *site) send(t testing.TB, method, path, token string, body any) (int, string, http.Header) {
	t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case io.Reader:
		r = b
	default:
		raw, err := json.Marshal(b)
		if err != nil {
			t.Fatal(err)
		}
		r = bytes.NewReader(raw)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, s.api.URL+path, r)
	if err != nil {
		t.Fatal(err)
	}
	if _, isReader := body.(io.Reader); body != nil && !isReader {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") == "text/event-stream" {
		return resp.StatusCode, "", resp.Header // it has no end
	}
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text), resp.Header
}

// ok asks as the operator and decodes the answer of a success.
func (s *site) ok(t testing.TB, method, path string, body, out any) {
	t.Helper()
	code, text, _ := s.send(t, method, path, operatorToken, body)
	if code/100 != 2 {
		t.Fatalf("%s %s: %d %s", method, path, code, text)
	}
	if out != nil {
		if err := json.Unmarshal([]byte(text), out); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, text)
		}
	}
}

func (s *site) addImage(t testing.TB) {
	t.Helper()
	s.ok(t, "POST", apiRoot+"/images?source=disk.img", bytes.NewReader(disk(t, 5, 1)), &s.image)
}

const bmcSecret = "admin:bmc-canary-5b1e"

func (s *site) yaml(userData string) string {
	return fmt.Sprintf(`apiVersion: recast/v1
kind: Network
metadata: {name: loop}
spec: {subnet: 127.0.0.0/24, dhcp: "off", unknown: discover}
---
apiVersion: recast/v1
kind: Image
metadata: {name: os}
spec: {type: disk, arch: amd64, digest: %q}
---
apiVersion: recast/v1
kind: Definition
metadata: {name: compute}
spec:
  image: os
  disk: {select: {minSize: 1MiB}}
  config:
    format: cloud-init
    userData: |
      #cloud-config
      hostname: ${machine.name}
      # %s
---
apiVersion: recast/v1
kind: Group
metadata: {name: all}
spec: {select: {rack: r1}, definition: compute}
---
apiVersion: recast/v1
kind: Machine
metadata: {name: m1, labels: {rack: r1}}
spec:
  nics: [{mac: "52:54:00:00:00:01", network: loop, ip: 127.0.0.15}]
  bmc: {url: "redfish://192.0.2.1", credentials: rack-bmc}
---
apiVersion: recast/v1
kind: Machine
metadata: {name: m2, labels: {rack: none}}
spec:
  nics: [{mac: "52:54:00:00:00:02", network: loop, ip: 127.0.0.16}]
`, s.image.Digest, userData)
}

func (s *site) plan(t testing.TB, yaml string, erase ...string) provision.Plan {
	t.Helper()
	var p provision.Plan
	s.ok(t, "POST", apiRoot+"/plan", PlanRequest{Files: []inventory.File{{Name: "site.yaml", Data: []byte(yaml)}}, Erase: erase}, &p)
	return p
}

// declare sets the BMC's secret, adds the image and applies the files.
func (s *site) declare(t testing.TB, userData string) {
	t.Helper()
	s.ok(t, "PUT", apiRoot+"/secrets/rack-bmc", SecretRequest{Value: bmcSecret}, nil)
	s.addImage(t)
	p := s.plan(t, s.yaml(userData), "m1")
	s.ok(t, "POST", apiRoot+"/apply", ApplyRequest{Plan: p.Digest}, nil)
}

// await polls a condition until it holds.
func await(t testing.TB, what string, holds func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: it did not come", what)
		}
	}
}

// script fetches a boot script as the machine with that hardware address.
func (s *site) script(t testing.TB, mac string) string {
	t.Helper()
	code, text := s.public(t, "/boot/script?mac="+mac+"&arch=x86_64.efi&uuid=4c4c4544-0000-2010-8020-80c04f202020")
	if code != http.StatusOK {
		t.Fatalf("script: %d %s", code, text)
	}
	return text
}

// public fetches from the boot listener, from a machine's address.
func (s *site) public(t testing.TB, path string) (int, string) {
	t.Helper()
	from := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 15)}
	c := http.Client{Transport: &http.Transport{DialContext: (&net.Dialer{LocalAddr: from}).DialContext, DisableKeepAlives: true}}
	resp, err := c.Get(s.boot.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

var nonceArg = regexp.MustCompile(`recast\.nonce=(\S+)`)

// claim boots the armed machine up to its claim, and gives its token.
func (s *site) claim(t testing.TB) string {
	t.Helper()
	nonce := ""
	await(t, "an armed machine", func() bool {
		m := nonceArg.FindStringSubmatch(s.script(t, "52:54:00:00:00:01"))
		if m != nil {
			nonce = strings.Trim(m[1], `"`)
		}
		return m != nil
	})
	code, text, _ := s.send(t, "POST", "/agent/v1/claim", "", inventory.Claim{Nonce: nonce, MAC: "52:54:00:00:00:01", BootID: "boot-1"})
	var grant inventory.ClaimReply
	if err := json.Unmarshal([]byte(text), &grant); err != nil || code != http.StatusOK || grant.Token == "" {
		t.Fatalf("claim: %d %s", code, text)
	}
	return grant.Token
}

// facts of the machine with one blank disk.
func facts() inventory.Facts {
	return inventory.Facts{CPU: inventory.CPUFacts{Count: 2, Architecture: "x86_64"}, Memory: inventory.MemoryFacts{Total: 1 << 30},
		Disks:      []inventory.DiskFacts{{Name: "/dev/sda", Serial: "S1", Size: 64 << 20, LogicalBlockSize: 512}},
		Interfaces: []inventory.NICFacts{{Name: "eth0", MAC: "52:54:00:00:00:01", HasCarrier: true}},
		Boot:       inventory.BootFacts{Mode: "uefi", PXEInterface: "52:54:00:00:00:01"}}
}
