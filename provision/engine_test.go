package provision

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"recast/bmc"
	"recast/image"
	"recast/inventory"
	"recast/ipxe"
	"recast/store"
	"recast/testenv"
)

// site is an engine with real records and images, and BMCs in memory.
type site struct {
	t      *testing.T
	dir    string
	store  *hungUp
	images *image.Store
	image  inventory.Digest
	bmcs   map[string]*bmc.Fake // by host
	watch  time.Duration
	*Engine
	stop func()
}

// hungUp is a store that can lose an answer: the commit happens, and whoever
// asked hears an error.
type hungUp struct {
	store.Store
	lose atomic.Int64 // commits until then; below 1 none
	deaf atomic.Bool  // nothing can be read
	full atomic.Bool  // nothing can be written
	slow sync.RWMutex // locked: a read waits

	onLoss func()
}

func (h *hungUp) Get(ctx context.Context, key string) (store.Record, error) {
	h.slow.RLock()
	defer h.slow.RUnlock()
	if h.deaf.Load() {
		return store.Record{}, store.ErrUnavailable
	}
	return h.Store.Get(ctx, key)
}

func (h *hungUp) Commit(ctx context.Context, ops ...store.Op) (int64, error) {
	if h.full.Load() {
		return 0, store.ErrUnavailable
	}
	rev, err := h.Store.Commit(ctx, ops...)
	if h.lose.Add(-1) == 0 && err == nil {
		if h.onLoss != nil {
			h.onLoss()
		}
		return 0, fmt.Errorf("%w: gave up waiting", store.ErrUnavailable)
	}
	return rev, err
}

func newSite(t *testing.T, machines int) *site {
	t.Helper()
	s := &site{t: t, dir: t.TempDir(), bmcs: map[string]*bmc.Fake{}}
	for i := range machines {
		s.bmcs[fmt.Sprintf("10.9.0.%d", i+1)] = &bmc.Fake{}
	}
	s.open()
	t.Cleanup(func() { s.close() })
	info, err := s.images.Add(t.Context(), bytes.NewReader(testenv.SimImage(4<<20, 1)), image.AddOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s.image = info.Digest
	if _, err := s.SetSecret(t.Context(), "rack-bmc", []byte("admin:secret"), "ann"); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *site) open() {
	s.t.Helper()
	db, err := store.OpenBolt(filepath.Join(s.dir, "recast.db"), store.BoltOptions{NoSync: true})
	if err != nil {
		s.t.Fatal(err)
	}
	s.store = &hungUp{Store: db}
	if s.images, err = image.Open(filepath.Join(s.dir, "images"), image.Options{}); err != nil {
		s.t.Fatal(err)
	}
	s.Engine, err = Open(s.t.Context(), Config{Store: s.store, Images: s.images, KeyFile: filepath.Join(s.dir, "key.age"),
		Address: func(string) (netip.Addr, bool) { return netip.MustParseAddr("10.0.0.1"), true },
		OwnAddresses: func() []netip.Addr {
			return []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.9.9.9")}
		},
		AgentPort: 8443, BootPort: 8080, SoftOff: -1, WatchBMCs: s.watch,
		Towards: func(string) (netip.Addr, bool) { return netip.MustParseAddr("10.9.9.9"), true },
		Ramdisk: func(inventory.Arch) RamdiskFiles { return RamdiskFiles{Kernel: "/r/vmlinuz", Initrd: "/r/initrd.img"} },
		Dial: func(ctx context.Context, target bmc.Target) (bmc.Client, error) {
			_, host, _ := strings.Cut(target.URL, "://")
			if fake, ok := s.bmcs[host]; ok {
				return fake.Dial(ctx, target)
			}
			return bmc.Dial(ctx, target)
		}})
	if err != nil {
		s.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Run(ctx) }()
	s.stop = func() { cancel(); <-done }
}

func (s *site) close() {
	s.stop()
	if err := errors.Join(s.images.Close(), s.store.Close()); err != nil {
		s.t.Error(err)
	}
}

func (s *site) restart() {
	s.t.Helper()
	s.close()
	s.open()
}

func (s *site) yaml(uuids bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "apiVersion: recast/v1\nkind: Network\nmetadata: {name: n}\nspec: {subnet: 10.0.0.0/24, dhcp: off}\n---\n"+
		"apiVersion: recast/v1\nkind: Image\nmetadata: {name: i}\nspec: {type: disk, arch: amd64, digest: %q}\n---\n"+
		"apiVersion: recast/v1\nkind: Definition\nmetadata: {name: d}\nspec:\n  image: i\n  disk: {select: {minSize: 16MiB}}\n  config: {format: cloud-init, userData: \"#cloud-config\\nhostname: x\\n\"}\n---\n"+
		"apiVersion: recast/v1\nkind: Group\nmetadata: {name: g}\nspec: {select: {rack: r}, definition: d, rollout: {maxUnavailable: 100%%, maxFailures: 100%%}}\n", s.image)
	for i := range len(s.bmcs) {
		fmt.Fprintf(&b, "---\napiVersion: recast/v1\nkind: Machine\nmetadata: {name: m%d, labels: {rack: r}}\nspec:\n  nics: [{mac: \"52:54:00:00:00:%02x\", network: n}]\n  bmc: {url: \"ipmi://10.9.0.%d\", credentials: rack-bmc}\n", i+1, i+1, i+1)
		if uuids {
			fmt.Fprintf(&b, "  uuid: %q\n", testUUID(i+1))
		}
	}
	return b.String()
}

func testUUID(i int) string { return fmt.Sprintf("7265636a-7374-4c61-8b00-%012d", i) }

func (s *site) apply(yaml string, erase ...string) {
	s.t.Helper()
	p, err := s.Plan(s.t.Context(), []inventory.File{{Name: "site.yaml", Data: []byte(yaml)}}, erase)
	if err == nil {
		_, err = s.Apply(s.t.Context(), p.Digest, "ann")
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// until waits for what nobody announces.
func (s *site) until(what string, ok func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			for _, v := range s.Views() {
				s.t.Logf("%s is %s/%s (%s), health %s, power %q, waits for %q, findings %q", v.Name, v.Status.Phase, v.Status.Step, v.Status.LastError, v.Status.Health, v.Status.Power, v.Waiting, v.Status.Findings)
			}
			s.t.Fatalf("never: %s", what)
		}
	}
}

func (s *site) await(name string, phase Phase, step StepName) (v View) {
	s.t.Helper()
	s.until(fmt.Sprintf("%s is %s/%s", name, phase, step), func() bool {
		v, _ = s.View(name)
		return v.Status.Phase == phase && v.Status.Step == step
	})
	return v
}

func testMAC(i int) inventory.MAC { return inventory.MAC(fmt.Sprintf("52:54:00:00:00:%02x", i)) }

func testAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 0, 0, byte(100 + i)}) }

// nonce asks for the machine's boot script as iPXE does.
func (s *site) nonce(i int) string {
	s.t.Helper()
	spec, err := s.BootSpec(s.t.Context(), ipxe.Client{MAC: testMAC(i), Remote: testAddr(i)})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, a := range spec.Args {
		if n, ok := strings.CutPrefix(a, "recast.nonce="); ok {
			return n
		}
	}
	s.t.Fatalf("the script of m%d starts %s (%s), no claim", i, spec.Kind, spec.Reason)
	return ""
}

func testFacts(i int, uuid string) inventory.Facts {
	return inventory.Facts{SystemVendor: inventory.SystemVendor{UUID: uuid, SerialNumber: fmt.Sprintf("SN%d", i)},
		Disks: []inventory.DiskFacts{{Name: "/dev/sda", Serial: fmt.Sprintf("D%d", i), Size: 64 << 20, LogicalBlockSize: 512, Holds: "data without a known signature"}}}
}

// boot claims and reports the inventory; the order is the answer.
func (s *site) boot(i int, bootID, uuid string) (token string, o inventory.Order, err error) {
	s.t.Helper()
	reply, err := s.Claim(s.t.Context(), inventory.Claim{Nonce: s.nonce(i), MAC: testMAC(i), UUID: uuid, Serial: fmt.Sprintf("SN%d", i), BootID: bootID}, testAddr(i))
	if err != nil {
		return "", o, err
	}
	o, err = s.Inventory(s.t.Context(), reply.Token, testFacts(i, uuid))
	return reply.Token, o, err
}

func TestEngineBringsAMachineFromApplyToActive(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	if f := s.bmcs["10.9.0.1"]; !f.Powered() || len(f.Boots()) != 1 || f.Boots()[0].Device != bmc.BootNetwork {
		t.Fatalf("the BMC was told %+v", f.Calls())
	}
	booted, err := s.BootSpec(t.Context(), ipxe.Client{MAC: testMAC(1), Remote: testAddr(1)})
	if err != nil || booted.Trace == "" || !slices.Contains(booted.Args, "recast.trace="+booted.Trace) {
		t.Fatalf("trace %q in %q, %v", booted.Trace, booted.Args, err)
	}
	s.Observe(inventory.Observation{Kind: inventory.SawDiscover, MAC: testMAC(1)})
	token, order, err := s.boot(1, "b1", testUUID(1))
	if err != nil || order.Kind != inventory.OrderWrite {
		t.Fatalf("order %+v, %v", order, err)
	}
	job := order.Job
	if job.Disk.Serial != "D1" || job.Image.Digest != s.image || job.Fence != 1 || job.Attempt != 1 || job.Config == nil {
		t.Errorf("job %+v", job)
	}
	volume, err := s.ConfigVolume(t.Context(), token)
	if err != nil || inventory.DigestOf(volume) != job.Config.Digest {
		t.Errorf("the volume is %s (%v), the job says %s", inventory.DigestOf(volume), err, job.Config.Digest)
	}
	report := inventory.Report{BootID: "b1", Fence: job.Fence, Attempt: job.Attempt, Step: inventory.AgentWriting, Erased: true, Total: 1}
	if r, err := s.Report(t.Context(), token, report); err != nil || r.Abort || r.LeaseSeconds <= 0 {
		t.Fatalf("report: %+v, %v", r, err)
	}
	// In the middle of it the server goes and comes back; nobody notices.
	s.restart()
	report.Step, report.ReadBack = inventory.AgentDone, s.image
	if r, err := s.Report(t.Context(), token, report); err != nil || r.Abort {
		t.Fatalf("report after a restart: %+v, %v", r, err)
	}
	s.await("m1", Deploying, StepStarting)
	if spec, err := s.BootSpec(t.Context(), ipxe.Client{MAC: testMAC(1), Remote: testAddr(1)}); err != nil || spec.Kind != ipxe.SpecLocal {
		t.Errorf("a machine that is written boots %+v, %v", spec, err)
	}
	token, said := reporter(t, volume)
	said.BootID, said.Hostname = "os", "m1"
	if err := s.Booted(t.Context(), "m1.0000", said); err == nil {
		t.Error("anybody may say what a machine runs")
	}
	if err := s.Booted(t.Context(), token, said); err != nil {
		t.Fatal(err)
	}
	v := s.await("m1", Active, StepNone)
	if v.Sync != InSync || v.Status.Evidence.Level != inventory.E3 || v.Status.Health != Healthy {
		t.Errorf("active, %s, %+v, %s", v.Sync, v.Status.Evidence, v.Status.Health)
	}
	p, err := s.Plan(t.Context(), []inventory.File{{Name: "site.yaml", Data: []byte(s.yaml(true))}}, nil)
	if err != nil || !p.Empty() {
		t.Errorf("the plan is %+v, %v", p, err)
	}
	// What was before the attempt and is after it belongs to none.
	s.Observe(inventory.Observation{Kind: inventory.SawDiscover, MAC: testMAC(1)})
	last := ""
	for _, l := range s.Timeline("m1") {
		if l.Kind != "operator" && l.Text != "dhcp-discover" && l.Trace != booted.Trace {
			t.Errorf("%s %q has the trace %q; want %q", l.Kind, l.Text, l.Trace, booted.Trace)
		}
		last = l.Trace
	}
	if last != "" {
		t.Errorf("a packet after the attempt has the trace %q", last)
	}
}

func TestOneNonceIsGrantedOnce(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	nonce := s.nonce(1)
	var granted, refusals atomic.Int64
	var work sync.WaitGroup
	for i := range 100 {
		work.Go(func() {
			_, err := s.Claim(context.Background(), inventory.Claim{Nonce: nonce, MAC: testMAC(1), UUID: testUUID(1), BootID: fmt.Sprint(i)}, testAddr(1))
			var refused *RefusedError
			switch {
			case err == nil:
				granted.Add(1)
			case errors.As(err, &refused):
				refusals.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	work.Wait()
	if granted.Load() != 1 || refusals.Load() != 99 {
		t.Errorf("%d grants and %d refusals", granted.Load(), refusals.Load())
	}
	s.restart()
	findings := 0
	for _, l := range s.Timeline("m1") {
		if l.Kind == "finding" && strings.Contains(l.Text, "nonce") {
			findings++
		}
	}
	if v, _ := s.View("m1"); findings != 1 || len(v.Status.Findings) != 1 || v.Status.Hold != nil {
		t.Errorf("%d lines, findings %q, hold %v", findings, v.Status.Findings, v.Status.Hold)
	}
}

func TestTwinsAreBothHeldAndTheSecondIsNotWritten(t *testing.T) {
	s := newSite(t, 2)
	s.apply(s.yaml(false), "m1", "m2")
	s.await("m1", Deploying, StepBooting)
	s.await("m2", Deploying, StepBooting)
	if _, o, err := s.boot(1, "b1", testUUID(7)); err != nil || o.Kind != inventory.OrderWrite {
		t.Fatalf("order %+v, %v", o, err)
	}
	if _, o, err := s.boot(2, "b2", testUUID(7)); err == nil {
		t.Fatalf("the twin was told %+v", o)
	}
	for _, name := range []string{"m1", "m2"} {
		v := s.await(name, Failed, StepNone)
		if v.Status.Hold == nil || v.Status.NextAction == "" {
			t.Errorf("%s: hold %+v, next %q", name, v.Status.Hold, v.Status.NextAction)
		}
	}
	if m, _ := s.known("m2"); m.snapshot().Intent.Write != nil {
		t.Error("the twin has a write intent")
	}
}

// An answer of the store that got lost must not leave a machine standing still:
// the commit happened, and the next event has to build on it.
func TestALostAnswerOfTheStoreIsFoundOut(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	nonce := s.nonce(1)
	claim := inventory.Claim{Nonce: nonce, MAC: testMAC(1), UUID: testUUID(1), Serial: "SN1", BootID: "b1"}
	s.store.lose.Store(1)
	if _, err := s.Claim(t.Context(), claim, testAddr(1)); err == nil {
		t.Fatal("a claim was granted that the store did not acknowledge")
	}
	reply, err := s.Claim(t.Context(), claim, testAddr(1)) // the agent asks again
	if err != nil {
		t.Fatal(err)
	}
	if o, err := s.Inventory(t.Context(), reply.Token, testFacts(1, testUUID(1))); err != nil || o.Kind != inventory.OrderWrite {
		t.Errorf("order %+v, %v", o, err)
	}
}

// A request that is dropped while its commit is under way changes nothing about
// the commit.
func TestAnAskerThatHangsUpDoesNotUndoACommit(t *testing.T) {
	s := newSite(t, 1)
	s.apply(s.yaml(true), "m1")
	s.await("m1", Deploying, StepBooting)
	token, order, err := s.boot(1, "b1", testUUID(1))
	if err != nil {
		t.Fatal(err)
	}
	report := inventory.Report{BootID: "b1", Fence: order.Job.Fence, Attempt: 1, Step: inventory.AgentWriting, Total: 100}
	for i := range 200 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		report.Seq++
		report.Erased = true
		report.Step = []inventory.AgentStep{inventory.AgentWriting, inventory.AgentVerifying}[i%2]
		_, _ = s.Report(ctx, token, report)
		cancel()
	}
	report.Step, report.ReadBack = inventory.AgentDone, s.image
	if r, err := s.Report(t.Context(), token, report); err != nil || r.Abort {
		t.Fatalf("report: %+v, %v", r, err)
	}
	s.await("m1", Deploying, StepStarting)
}

// A BMC that is busy for a moment costs no attempt; a refused password costs one
// login and nothing else.
func TestABusyBMCCostsPatienceAndAWrongPasswordOneLogin(t *testing.T) {
	s := newSite(t, 2)
	s.bmcs["10.9.0.1"].SetFault(bmc.FaultBusy)
	s.bmcs["10.9.0.2"].SetFault(bmc.FaultAuth)
	s.apply(s.yaml(true), "m1", "m2")
	v := s.await("m2", Failed, StepNone)
	if v.Status.Attempt != 1 || s.bmcs["10.9.0.2"].Count("dial") != 1 {
		t.Errorf("attempt %d, %d logins, %q", v.Status.Attempt, s.bmcs["10.9.0.2"].Count("dial"), v.Status.LastError)
	}
	s.bmcs["10.9.0.1"].SetFault(bmc.FaultNone)
	if v := s.await("m1", Deploying, StepBooting); v.Status.Attempt != 1 {
		t.Errorf("attempt %d after a busy moment", v.Status.Attempt)
	}
}

// TestALookAtWhatFailedStartsNoOther: not the look, nor what it leaves, and not
// after a restart either.
func TestALookAtWhatFailedStartsNoOther(t *testing.T) {
	s := newSite(t, 2)
	y := strings.Replace(s.yaml(true), "maxUnavailable: 100%, maxFailures: 100%", "maxUnavailable: 1, maxFailures: 1", 1)
	s.apply(strings.Replace(y, "  image: i\n", "  image: i\n  attempts: 1\n", 1), "m1", "m2")
	s.await("m1", Deploying, StepBooting)
	agent, o, err := s.boot(1, "b1", testUUID(1))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Report(t.Context(), agent, inventory.Report{BootID: "b1", Fence: o.Job.Fence, Attempt: 1, Step: inventory.AgentFailed, Error: "a bad disk"}); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Failed, StepNone)
	s.awaitWait("m2", "1 of them failed")
	if err := s.Look(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Inspecting, StepBooting)
	if _, _, err := s.boot(1, "b2", testUUID(1)); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Available, StepNone)
	s.awaitWait("m2", "failure budget spent")
	s.restart()
	s.awaitWait("m2", "failure budget spent")
	if err := s.Retry(t.Context(), "m1", "ann"); err != nil {
		t.Fatal(err)
	}
	s.await("m1", Deploying, StepBooting)
	s.awaitWait("m2", "maxUnavailable: 1 of the group are away")
}

// awaitWait waits until a machine waits for the reason, and never lets it start.
func (s *site) awaitWait(name, why string) {
	s.t.Helper()
	s.until(name+" waits for "+why, func() bool {
		v, _ := s.View(name)
		if Busy(v.Status.Phase) {
			s.t.Fatalf("%s is %s and waits for %q, want %q", name, v.Status.Phase, v.Waiting, why)
		}
		return strings.Contains(v.Waiting, why)
	})
}
