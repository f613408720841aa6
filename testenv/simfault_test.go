package testenv

import (
	"bytes"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"recast/inventory"
)

// newSimRack is a server with an image, the BMCs' secret and n machines.
func newSimRack(t *testing.T, n int, change func(*SimulatedOptions)) (*simServer, inventory.Digest) {
	s := newSimServer(t)
	image := s.addImage(SimImage(simImageSize, 3))
	s.setSecret(simSecret, simUser+":"+simPassword)
	for i := range n {
		s.add(i+1, change)
	}
	return s, image
}

// simQuick are deadlines that a test can wait for.
const simQuick = "  deadlines: {stopping: 3s, arming: 3s, powering: 3s, booting: 2s, claiming: 2s, inspecting: 2s, writing: 5s, verifying: 5s, awaiting-operator: 3s}\n  health: {deadline: 5s}\n"

// awaitFailed waits for a machine that gives up, and holds what every failure
// owes: a reason, what to do next, and an explanation.
func (s *simServer) awaitFailed(name string, within time.Duration, reason string) simView {
	s.t.Helper()
	var v simView
	s.await(name+" fails for: "+reason, within, func() bool {
		v = s.view(name)
		return v.Status.Phase == "failed" || v.Status.Hold != nil
	})
	if !strings.Contains(v.Status.LastError, reason) {
		s.t.Errorf("%v: want a reason with %q", v, reason)
	}
	if v.Status.NextAction == "" {
		s.t.Errorf("%v: no next action", v)
	}
	var x struct{ Missing, Next string }
	s.must(http.MethodGet, "/api/v1/machines/"+name+"/explain", nil, &x)
	if x.Missing == "" || x.Next == "" {
		s.t.Errorf("explain %s: %+v", name, x)
	}
	return v
}

// untouched remembers disks and says later whether a bit of them moved.
func simUntouched(t *testing.T, disks ...*SimDisk) (check func()) {
	t.Helper()
	before := make([]inventory.Digest, len(disks))
	for i, d := range disks {
		var err error
		before[i], err = d.Digest()
		simMust(t, err)
	}
	return func() {
		t.Helper()
		for i, d := range disks {
			after, err := d.Digest()
			simMust(t, err)
			if after != before[i] || d.Written() != 0 {
				t.Errorf("disk %s was touched: %s before, %s now, %d bytes written", d.ID.Serial, before[i].Short(), after.Short(), d.Written())
			}
		}
	}
}

func TestFaultsEndNamedAndTouchNoDisk(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*SimulatedOptions)
		spec   simDeclare
		before func(*Simulated)
		reason string
		logins int // exactly; 0 any
	}{
		{name: "BMC answers and does nothing", change: func(o *SimulatedOptions) { o.Faults.IgnorePower = true }, reason: "power on"},
		{name: "BMC answers and does nothing, machine on",
			before: func(m *Simulated) {
				m.SetDead(true)
				_ = m.PowerOn(t.Context())
				m.SetFaults(func(f *BMCFaults) { f.IgnorePower = true })
			}, reason: "power off"},
		{name: "BMC refuses the password", change: func(o *SimulatedOptions) { o.Faults.RefuseAuth = true }, reason: "refuse", logins: 1},
		{name: "BMC keeps no boot override", change: func(o *SimulatedOptions) { o.Faults.IgnoreBoot = true }, reason: "set network boot"},
		{name: "machine never boots", change: func(o *SimulatedOptions) { o.Dead = true }, reason: "no request for a boot script"},
		{name: "hint matches two disks", change: func(o *SimulatedOptions) {
			o.Disks = append(o.Disks, inventory.DiskID{Serial: o.Serial + "-1", Size: simDiskSize})
		}, reason: "choose a disk"},
		{name: "disk too small", change: func(o *SimulatedOptions) { o.Disks[0].Size = simImageSize + 1<<20 }, spec: simDeclare{Hint: "maxSize: 1GiB"}, reason: "the image with its configuration needs"},
		{name: "hint matches no disk", spec: simDeclare{Hint: "serial: OTHER"}, reason: "choose a disk"},
		{name: "BMC hangs", change: func(o *SimulatedOptions) { o.Faults.Hang = true }, reason: "power off"},
	} {
		for i, kind := range []RackBMC{BMCIPMI, BMCRedfish} {
			t.Run(c.name+" "+string(kind), func(t *testing.T) {
				t.Parallel()
				s := newSimServer(t)
				c := c
				c.spec.Image = s.addImage(SimImage(simImageSize, 3))
				s.setSecret(simSecret, simUser+":"+simPassword)
				m := s.add(1+i, c.change)
				check := simUntouched(t, m.Disks...)
				if c.before != nil {
					c.before(m)
				}
				c.spec.Spec = simQuick
				s.apply(c.spec)
				v := s.awaitFailed(m.Options.Name, 60*time.Second, c.reason)
				if n := m.Logins(); c.logins != 0 && n != c.logins {
					t.Errorf("%d logins with a wrong password, want %d: the BMC locks accounts", n, c.logins)
				}
				if v.Status.Phase != "failed" {
					t.Errorf("%v: want failed", v)
				}
				check()
			})
		}
	}
}

// A BMC that loses the flag shows as a machine that starts from its disk: it is
// armed once more, then given up.
func TestALostBootFlagIsArmedOnceMoreAndLeavesTheOldSystem(t *testing.T) {
	s, image := newSimRack(t, 2, nil)
	s.apply(simDeclare{Image: image, Spec: simQuick})
	for _, m := range s.machines {
		s.awaitActive(m.Options.Name, 60*time.Second)
		m.SetFaults(func(f *BMCFaults) { f.LoseBoot = true })
	}
	before := map[string]inventory.Digest{}
	for _, m := range s.machines {
		before[m.Options.Name], _ = m.Disks[0].Digest()
	}
	s.apply(simDeclare{Image: image, Spec: simQuick + "  attempts: 1\n", UserData: "#cloud-config\nhostname: other\n"})
	for _, m := range s.machines {
		starts := len(m.Boots())
		v := s.awaitFailed(m.Options.Name, 60*time.Second, "no network boot: ") // seen in its disk's boot, or missed in the script
		if v.Status.Phase != "failed" {
			t.Errorf("%v: want failed", v)
		}
		if after, _ := m.Disks[0].Digest(); after != before[m.Options.Name] {
			t.Errorf("%s: the disk has changed", m.Options.Name)
		}
		if n := len(m.Boots()) - starts; n > 2 {
			t.Errorf("%s was started %d times for one attempt", m.Options.Name, n)
		}
		// Its flag is kept again: another turn arrives.
		m.SetFaults(func(f *BMCFaults) { f.LoseBoot = false })
		s.must(http.MethodPost, "/api/v1/machines/"+m.Options.Name+"/retry", nil, nil)
		s.awaitActive(m.Options.Name, 60*time.Second)
	}
}

// Kernels hang as they restart a server, too: the disk is written, and only
// somebody who switches the power helps.
func TestAMachineThatHangsAtItsRestartIsPowerCycled(t *testing.T) {
	s, image := newSimRack(t, 2, nil)
	for _, m := range s.machines {
		m.HangAtRestart(1)
	}
	s.apply(simDeclare{Image: image, Spec: simQuick})
	for _, m := range s.machines {
		s.awaitActive(m.Options.Name, 60*time.Second)
		if n := len(m.Disks[0].Erases()); n != 1 {
			t.Errorf("%s was erased %d times", m.Options.Name, n)
		}
		if n := len(m.Boots()); n != 2 {
			t.Errorf("%s was started %d times, want once for the ramdisk and once for its disk", m.Options.Name, n)
		}
	}
}

func TestTwoMachinesWithOneUUIDAreHeld(t *testing.T) {
	s, image := newSimRack(t, 2, func(o *SimulatedOptions) {
		o.UUID = "deadbeef-0000-4000-8000-00000000beef"
		o.Serial = "SAME"
	})
	a, b := s.machines[0], s.machines[1]
	check := simUntouched(t, a.Disks[0])
	a.SetDead(true) // the second is first
	s.apply(simDeclare{Image: image, Shy: true, Spec: "  attempts: 1\n"})
	s.awaitActive("m02", 60*time.Second)
	a.SetDead(false)
	simMust(t, a.Reset(t.Context()))
	v := s.awaitFailed("m01", 60*time.Second, "same UUID")
	if v.Status.Hold == nil {
		t.Errorf("%v: want a hold", v)
	}
	check()
	if n := len(b.Disks[0].Erases()); n != 1 {
		t.Errorf("the first machine was erased %d times", n)
	}
	s.await("the other one is held too", 30*time.Second, func() bool { return s.view("m02").Status.Hold != nil })
}

// flip changes one bit of a blob of the image store.
func (s *simServer) flip(blob inventory.Digest, at int64) {
	s.t.Helper()
	path := filepath.Join(s.data, "images", "blobs", blob.Hex())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil { // blobs are read-only
		simMust(s.t, os.Chmod(path, 0o600))
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	simMust(s.t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, at)
	simMust(s.t, err)
	b[0] ^= 0x10
	_, err = f.WriteAt(b, at)
	simMust(s.t, err)
}

type simImageInfo struct {
	Digest, Manifest, Pack inventory.Digest
	PackSize, ManifestSize int64
	Damaged                string
}

func (s *simServer) imageInfo() simImageInfo {
	s.t.Helper()
	var all []simImageInfo
	s.must(http.MethodGet, "/api/v1/images", nil, &all)
	if len(all) != 1 {
		s.t.Fatalf("%d images", len(all))
	}
	return all[0]
}

func TestAFlippedBitAtRestFailsByNameAndMendingRedeploys(t *testing.T) {
	for _, part := range []string{"pack", "manifest"} {
		t.Run(part, func(t *testing.T) {
			t.Parallel()
			s, image := newSimRack(t, 2, nil)
			info := s.imageInfo()
			if part == "pack" {
				s.flip(info.Pack, info.PackSize/2)
			} else {
				s.flip(info.Manifest, info.ManifestSize/2)
			}
			s.apply(simDeclare{Image: image})
			for _, m := range s.machines {
				v := s.awaitFailed(m.Options.Name, 60*time.Second, map[string]string{"pack": "frame ", "manifest": "manifest"}[part])
				if v.Status.FailedImage != image || !strings.Contains(v.Status.NextAction, "image add") {
					t.Errorf("%v: failed image %q", v, v.Status.FailedImage)
				}
				if m.Disks[0].Bootable() {
					t.Errorf("%s would start what was written of a damaged image", m.Options.Name)
				}
			}
			if d := s.imageInfo().Damaged; d == "" {
				t.Error("the image is not marked as damaged")
			}
			s.addImage(SimImage(simImageSize, 3))
			for _, m := range s.machines {
				s.awaitActive(m.Options.Name, 60*time.Second)
				raw, err := os.ReadFile(m.Disks[0].Path)
				simMust(t, err)
				img := SimImage(simImageSize, 3)
				if got, want := raw[1<<20:simImageSize-1<<20], img[1<<20:simImageSize-1<<20]; string(got) != string(want) {
					t.Errorf("%s: the disk is not the image", m.Options.Name)
				}
			}
			if d := s.imageInfo().Damaged; d != "" {
				t.Errorf("after the mending the image is still damaged: %s", d)
			}
		})
	}
}

// simWire stands between the machines and the server's boot listener and may
// spoil what goes by.
func simWire(t *testing.T, spoil func(path string, body []byte)) func(*simServer) {
	return simProxy(t, func(r *http.Response) error {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return err
		}
		spoil(r.Request.URL.Path, body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		return nil
	})
}

// simProxy is a simWire that may change whole answers; an error is a 502.
func simProxy(t *testing.T, change func(*http.Response) error) func(*simServer) {
	return func(s *simServer) {
		_, port, err := net.SplitHostPort(s.boot)
		simMust(t, err)
		s.listen = net.JoinHostPort("127.0.0.2", port) // the server names itself 127.0.0.1
		proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: s.listen})
		proxy.ErrorLog = log.New(io.Discard, "", 0)
		proxy.ModifyResponse = change
		l, err := net.Listen("tcp4", s.boot)
		simMust(t, err)
		server := &http.Server{Handler: proxy}
		go func() { _ = server.Serve(l) }()
		t.Cleanup(func() { _ = server.Close() })
	}
}

func TestAFlippedBitOnTheWireIsFetchedAgain(t *testing.T) {
	for _, c := range []struct {
		name    string
		flips   int
		attempt int
		text    string
	}{
		{"once", 1, 1, ""},
		{"twice in a row", 2, 2, "own copy is whole"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var flips atomic.Int64
			s := newSimServer(t, simWire(t, func(path string, body []byte) {
				if strings.HasPrefix(path, "/images/") && len(body) > 1<<19 && flips.Add(1) <= int64(c.flips) {
					body[len(body)/2] ^= 1
				}
			}))
			image := s.addImage(SimImage(simImageSize, 3))
			s.setSecret(simSecret, simUser+":"+simPassword)
			m := s.add(1, nil)
			s.apply(simDeclare{Image: image})
			v := s.awaitActive("m01", 60*time.Second)
			if n := int(flips.Load()); v.Status.Attempt != c.attempt || n <= c.flips {
				t.Errorf("%v: arrived after %d answers of which %d were spoilt, want attempt %d", v, n, c.flips, c.attempt)
			}
			said := false
			for _, l := range s.timeline("m01") {
				said = said || l.Kind == "error" && strings.Contains(l.Text, c.text)
			}
			if said != (c.text != "") {
				t.Errorf("an error that says %q: %t", c.text, said)
			}
			if d := s.imageInfo().Damaged; d != "" {
				t.Errorf("the server takes its own copy for damaged: %s", d)
			}
			got, err := os.ReadFile(m.Disks[0].Path)
			simMust(t, err)
			if img := SimImage(simImageSize, 3); !bytes.Equal(got[1<<20:simImageSize-1<<20], img[1<<20:simImageSize-1<<20]) {
				t.Error("the disk is not the image")
			}
		})
	}
}

func TestAPowerCutInMidWriteLeavesNothingToStartAndTheNextStartArrives(t *testing.T) {
	s, image := newSimRack(t, 2, nil)
	cut := make(chan *Simulated, 2)
	for _, m := range s.machines {
		m.Disks[0].CutAfter(5<<20, func() {
			_ = m.PowerOff(t.Context())
			cut <- m
		})
	}
	s.apply(simDeclare{Image: image, Spec: "  deadlines: {writing: 3s, verifying: 3s}\n"})
	for range s.machines {
		select {
		case m := <-cut:
			if m.Disks[0].Bootable() || m.Powered() {
				t.Errorf("%s: bootable %t, powered %t after the cut", m.Options.Name, m.Disks[0].Bootable(), m.Powered())
			}
			if n := len(m.Disks[0].Erases()); n != 1 {
				t.Errorf("%s: erased %d times before the cut", m.Options.Name, n)
			}
		case <-time.After(60 * time.Second):
			t.Fatal("no write was cut")
		}
	}
	for _, m := range s.machines {
		v := s.awaitActive(m.Options.Name, 60*time.Second)
		if n := len(m.Disks[0].Erases()); v.Status.Attempt != 2 || n != 2 {
			t.Errorf("%v: erased %d times; want the second attempt and one erase in each", v, n)
		}
	}
}

// A power cut that comes back by itself stays within the attempt: the same
// intent goes on.
func TestARestartInMidWriteResumesTheAttempt(t *testing.T) {
	s, image := newSimRack(t, 1, nil)
	m := s.machines[0]
	m.Disks[0].CutAfter(5<<20, func() {
		_ = m.PowerOff(t.Context())
		go func() { _ = m.SetBootOnce(BootOnce{Device: BootPXE}); _ = m.PowerOn(t.Context()) }()
	})
	s.apply(simDeclare{Image: image})
	v := s.awaitActive("m01", 60*time.Second)
	if v.Status.Attempt != 1 || v.Status.Restarts != 1 {
		t.Errorf("%v: %d restarts; want the first attempt, restarted once", v, v.Status.Restarts)
	}
}

func TestAMachineTakenOutAndPutBackIsInSync(t *testing.T) {
	s, image := newSimRack(t, 2, nil)
	s.apply(simDeclare{Image: image})
	for _, m := range s.machines {
		s.awaitActive(m.Options.Name, 60*time.Second)
	}
	m := s.machines[0]
	before, err := m.Disks[0].Digest()
	simMust(t, err)
	starts := len(m.Boots())
	s.apply(simDeclare{Image: image, Without: []string{"m01"}})
	simMust(t, m.Reset(t.Context())) // it goes on living meanwhile
	s.await("it starts its disk", 20*time.Second, func() bool { b := m.Boots(); return simHas(b[len(b)-1].Path, simDiskStarted) })
	p := s.plan(simDeclare{Image: image})
	if len(p.Entries) > 0 {
		t.Errorf("putting it back would do %+v", p.Entries)
	}
	s.apply(simDeclare{Image: image})
	s.awaitActive("m01", 20*time.Second)
	if after, _ := m.Disks[0].Digest(); after != before || len(m.Disks[0].Erases()) != 1 {
		t.Errorf("the disk changed: erased %d times", len(m.Disks[0].Erases()))
	}
	if n := len(m.Boots()) - starts; n != 1 {
		t.Errorf("it was started %d times, once by hand", n)
	}
}

func TestALostStoreWritesNothingAndAdoptBringsMachinesBack(t *testing.T) {
	s, image := newSimRack(t, 2, nil)
	s.apply(simDeclare{Image: image})
	before := map[string]inventory.Digest{}
	for _, m := range s.machines {
		s.awaitActive(m.Options.Name, 60*time.Second)
		before[m.Options.Name], _ = m.Disks[0].Digest()
	}
	s.kill()
	simMust(t, os.RemoveAll(s.data))
	s.http = nil
	s.start()
	// Without a word about them, machines that restart reach their disks.
	for _, m := range s.machines {
		simMust(t, m.SetBootOnce(BootOnce{Device: BootPXE, UEFI: m.UEFI()}))
		simMust(t, m.Reset(t.Context()))
	}
	s.addImage(SimImage(simImageSize, 3))
	s.setSecret(simSecret, simUser+":"+simPassword)
	d := simDeclare{Image: image}
	p := s.plan(d)
	for _, e := range p.Entries {
		if e.Kind == "write" {
			t.Errorf("the plan would write %+v", e)
		}
	}
	s.must(http.MethodPost, "/api/v1/freeze", map[string]string{"reason": "the store was lost"}, nil)
	p = s.plan(d)
	s.must(http.MethodPost, "/api/v1/apply", map[string]any{"plan": p.Digest}, nil)
	for _, m := range s.machines {
		s.must(http.MethodPost, "/api/v1/machines/"+m.Options.Name+"/adopt", nil, nil)
		s.await(m.Options.Name+" is adopted", 60*time.Second, func() bool {
			v := s.view(m.Options.Name)
			return v.Status.Phase == "active" && v.Sync == "in sync"
		})
		s.await(m.Options.Name+" starts its disk", 20*time.Second, func() bool {
			b := m.Boots()
			return simHas(b[len(b)-1].Path, simDiskStarted)
		})
		if after, _ := m.Disks[0].Digest(); after != before[m.Options.Name] || len(m.Disks[0].Erases()) != 1 {
			t.Errorf("%s: the disk changed", m.Options.Name)
		}
	}
	if p := s.plan(d); len(p.Entries) > 0 {
		t.Errorf("the plan is not empty: %+v", p.Entries)
	}
}

func TestAnUndeclaredMachineIsShownAndKeepsItsDisk(t *testing.T) {
	s := newSimServer(t)
	m := s.add(1, nil)
	// Somebody else's system stands on it.
	raw := make([]byte, simDiskSize)
	copy(raw, SimImage(simDiskSize, 9))
	simMust(t, os.WriteFile(m.Disks[0].Path, raw, 0o600))
	check := simUntouched(t, m.Disks[0])
	yaml := "apiVersion: recast/v1\nkind: Network\nmetadata: {name: sim}\nspec: {subnet: 127.0.0.0/8, dhcp: off, unknown: discover}\n"
	var p simPlan
	s.must(http.MethodPost, "/api/v1/plan", map[string]any{"files": []inventory.File{{Name: "net.yaml", Data: []byte(yaml)}}}, &p)
	s.must(http.MethodPost, "/api/v1/apply", map[string]any{"plan": p.Digest}, nil)
	simMust(t, m.SetBootOnce(BootOnce{Device: BootPXE}))
	simMust(t, m.PowerOn(t.Context()))
	var strays []struct {
		MAC   inventory.MAC
		Facts inventory.Facts
		YAML  string
	}
	s.await("it is discovered", 30*time.Second, func() bool {
		s.must(http.MethodGet, "/api/v1/discovered", nil, &strays)
		return len(strays) == 1
	})
	if st := strays[0]; st.MAC != m.Options.MAC || len(st.Facts.Disks) != 1 || !strings.Contains(st.YAML, m.Options.Serial) {
		t.Errorf("discovered %+v", st)
	}
	s.await("it goes back to its disk", 30*time.Second, func() bool {
		b := m.Boots()
		return simHas(b[len(b)-1].Path, simDiskStarted)
	})
	check()
}
