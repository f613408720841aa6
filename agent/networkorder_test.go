package agent

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"recast/inventory"
	"recast/pack"
)

var (
	cardPath = slices.Concat([]byte{2, 1, 12, 0, 0xd0, 0x41, 3, 0x0a, 0, 0, 0, 0}, []byte{3, 11, 37, 0}, make([]byte, 33), []byte{0x7f, 0xff, 4, 0})
	diskPath = []byte{4, 1, 42, 0}
	program  = []byte("a program")
	refusing = inventory.EFIEntry{Label: inventory.BootLabel, Loader: `\EFI\BOOT\BOOTX64.EFI`, Second: true,
		Again: &inventory.EFIProgram{File: `\again.efi`, Digest: inventory.DigestOf(program)}}
	someParts = parts{esp: systemPart{number: 1, id: pack.GUID{1}}, volume: systemPart{number: 3, id: pack.GUID{3}}}
)

func entryOf(name string, active bool, path []byte) []byte {
	o := LoadOption{Description: name, Path: append(slices.Clone(path), 0x7f, 0xff, 4, 0)}
	if active {
		o.Attributes = activeOption
	}
	return o.Encode()
}

// serverVars are those of a server: its disk first, then two cards, one of them twice, and
// its set-up.
func serverVars() fakeVars {
	app := LoadOption{Attributes: 0x101, Description: "Setup", Path: diskPath}.Encode()
	return fakeVars{bootName(0): entryOf("debian", true, diskPath), bootName(1): entryOf("NIC 1", true, cardPath), bootName(2): entryOf("NIC 2", true, cardPath),
		bootName(3): app, bootName(4): entryOf("NIC 3, off", false, cardPath), bootOrder: order(3, 0, 4, 1, 2), bootCurrent: order(2)}
}

func TestNetworkOrderLeavesNothingThatLeadsToADisk(t *testing.T) {
	vars := serverVars()
	again := againOption(refusing, someParts)
	if why := throughNetwork(vars, again); !strings.Contains(why, `Boot0000 "debian" before the end`) {
		t.Errorf("before: %q", why)
	}
	if _, err := setNetworkOrder(vars, refusing, someParts); err != nil {
		t.Fatal(err)
	}
	// The card that the ramdisk came by is first, and the disk's entry stands outside.
	if have := vars[bootOrder]; !bytes.Equal(have, order(2, 1, 6)) {
		t.Errorf("order %x", have)
	}
	if why := throughNetwork(vars, again); why != "" {
		t.Errorf("after: %q", why)
	}
	if text, err := bootNext(vars, inventory.BootLabel); err != nil || !bytes.Equal(vars[bootNextName], order(5)) {
		t.Errorf("%q, %v: BootNext %x", text, err, vars[bootNextName])
	}
	if o, _ := readOption(vars, 0); o.Description != "debian" {
		t.Error("what somebody else made is gone")
	}
	// Again it writes nothing: flash wears out.
	before := maps.Clone(vars)
	if _, err := setNetworkOrder(vars, refusing, someParts); err != nil || !maps.EqualFunc(before, vars, bytes.Equal) {
		t.Errorf("the second time something changed: %v", err)
	}
	// A write without it takes the program's entry out, and puts the disk's in.
	lastGood := refusing
	lastGood.Again = nil
	if _, err := setBootEntry(vars, lastGood, someParts.esp); err != nil || !bytes.Equal(vars[bootOrder], order(2, 5, 1)) {
		t.Errorf("%v: order %x", err, vars[bootOrder])
	}
	if ours, _, _ := labelled(vars, inventory.AgainLabel, func(LoadOption) bool { return true }); len(ours) > 0 {
		t.Errorf("%d are left", ours)
	}
}

func TestWhatAFirmwareDoesToTheOrderIsSeen(t *testing.T) {
	again := againOption(refusing, someParts)
	for what, tt := range map[string]struct {
		spoil func(v fakeVars)
		want  string
	}{
		"nothing":                  {func(fakeVars) {}, ""},
		"an entry behind":          {func(v fakeVars) { v[bootOrder] = order(2, 1, 6, 0) }, ""},
		"the cards sorted":         {func(v fakeVars) { v[bootOrder] = order(1, 2, 6) }, ""},
		"a card gone":              {func(v fakeVars) { v[bootOrder] = order(1, 6) }, ""},
		"its set-up before":        {func(v fakeVars) { v[bootOrder] = order(3, 2, 6) }, ""},
		"an entry that is gone":    {func(v fakeVars) { v[bootOrder] = order(9, 2, 6) }, ""},
		"a disk first":             {func(v fakeVars) { v[bootOrder] = order(0, 2, 1, 6) }, `Boot0000 "debian"`},
		"a disk between":           {func(v fakeVars) { v[bootOrder] = order(2, 0, 1, 6) }, `Boot0000 "debian"`},
		"ours in the order":        {func(v fakeVars) { v[bootOrder] = order(2, 1, 5, 6) }, `Boot0005 "recast"`},
		"the program's entry gone": {func(v fakeVars) { delete(v, bootName(6)) }, "whatever disk the firmware finds"},
		"not in the order":         {func(v fakeVars) { v[bootOrder] = order(2, 1) }, "whatever disk the firmware finds"},
		"switched off":             {func(v fakeVars) { v[bootName(6)][0] = 0 }, "whatever disk the firmware finds"},
		"leading to another volume": {func(v fakeVars) {
			v[bootName(6)] = bootOption(inventory.AgainLabel, `\again.efi`, someParts.esp).Encode()
		}, `"recast again"`},
		"no card":            {func(v fakeVars) { v[bootOrder] = order(6) }, "no entry that leads to the network"},
		"a card that is off": {func(v fakeVars) { v[bootOrder] = order(4, 6) }, "no entry that leads to the network"},
		"a disk, and a card behind its path": {func(v fakeVars) {
			v[bootName(8)], v[bootOrder] = entryOf("both", true, slices.Concat([]byte{4, 4, 6, 0, 'x', 0, 0x7f, 1, 4, 0}, cardPath)), order(2, 8, 1, 6)
		}, `Boot0008 "both"`},
		"a disk of iSCSI": {func(v fakeVars) {
			v[bootName(8)], v[bootOrder] = entryOf("iSCSI", true, slices.Concat(cardPath[:len(cardPath)-4], []byte{3, 19, 4, 0})), order(8, 2, 1, 6)
		}, `Boot0008 "iSCSI"`},
		"no order": {func(v fakeVars) { delete(v, bootOrder) }, "whatever disk the firmware finds"},
	} {
		vars := serverVars()
		if _, err := setNetworkOrder(vars, refusing, someParts); err != nil {
			t.Fatal(err)
		}
		tt.spoil(vars)
		if why := throughNetwork(vars, again); tt.want == "" && why != "" || !strings.Contains(why, tt.want) {
			t.Errorf("%s: %q, want %q", what, why, tt.want)
		}
		vars[bootCurrent] = order(2)
		if _, err := setNetworkOrder(vars, refusing, someParts); err != nil || throughNetwork(vars, again) != "" {
			t.Errorf("%s: not mended: %v, %s", what, err, throughNetwork(vars, again))
		}
	}
}

func TestAnOrderThatLeadsToNoDiskIsGivenItBack(t *testing.T) {
	untouched := serverVars()
	if text, err := leadToDisk(untouched); text != "" || err != nil || !maps.EqualFunc(untouched, serverVars(), bytes.Equal) {
		t.Errorf("an order that is not ours: %q, %v", text, err)
	}
	if text, err := leadToDisk(nil); text != "" || err != nil {
		t.Errorf("a BIOS: %q, %v", text, err)
	}
	vars := serverVars()
	if _, err := setNetworkOrder(vars, refusing, someParts); err != nil {
		t.Fatal(err)
	}
	if freeDisk(keptVars{vars}, t.Logf) {
		t.Error("a firmware that keeps its order is taken for one that leads to the disk")
	}
	text, err := leadToDisk(vars)
	if err != nil || !strings.Contains(text, "Boot0006, which started it over, is gone") || !strings.Contains(text, "Boot0005, which starts the disk") {
		t.Errorf("%q, %v", text, err)
	}
	if !bytes.Equal(vars[bootOrder], order(2, 5, 1)) || vars[bootName(6)] != nil || vars[bootName(0)] == nil {
		t.Errorf("order %x", vars[bootOrder])
	}
	before := maps.Clone(vars)
	if freeDisk(vars, t.Logf) || !maps.EqualFunc(before, vars, bytes.Equal) {
		t.Error("the second time something changed")
	}
	// Without an entry for the disk it is the firmware's to find one.
	if _, err := setNetworkOrder(vars, refusing, someParts); err != nil {
		t.Fatal(err)
	}
	delete(vars, bootName(5))
	if text, err := leadToDisk(vars); err != nil || !strings.Contains(text, "whatever disk the firmware finds") || !bytes.Equal(vars[bootOrder], order(2, 1)) {
		t.Errorf("%q, %v: order %x", text, err, vars[bootOrder])
	}
}

// keptVars are those of a firmware that keeps its boot order as it is, and says nothing.
type keptVars struct{ fakeVars }

func (v keptVars) Set(name string, attributes uint32, value []byte) error {
	if name == bootOrder {
		return nil
	}
	return v.fakeVars.Set(name, attributes, value)
}

func (v keptVars) Delete(string) error { return nil }

// Only the server's word undoes what a gate set, and then the next start is the disk's.
func TestTheServersWordGivesTheOrderItsDiskBack(t *testing.T) {
	for _, free := range []bool{false, true} {
		vars := serverVars()
		if _, err := setNetworkOrder(vars, refusing, someParts); err != nil {
			t.Fatal(err)
		}
		s := startServer(t)
		s.orders = []inventory.Order{{Kind: inventory.OrderLocal, FreeDisk: free}}
		_, path := diskFile(t, 4*MiB, 0xA5)
		a := newAgent(t, s, path)
		a.Args.Nonce, a.Args.Discover = "", "stranger"
		a.Machine = simMachine{path: path, id: inventory.DiskID{Serial: "S1"}, vars: vars}
		if out, err := run(t, a); err != nil || out.Kind != inventory.OrderLocal {
			t.Fatalf("%+v, %v", out, err)
		}
		if _, left := vars[bootName(6)]; left == free || (vars[bootNextName] != nil) != free {
			t.Errorf("with freeDisk %v its entry stands: %v; next %x", free, left, vars[bootNextName])
		}
	}
}

func TestWhatFirmwareRunsBesideItsOrderIsTold(t *testing.T) {
	name := func(s string) string { return s + "-" + globalVariable }
	for what, c := range map[string]struct {
		set  fakeVars
		want string
	}{
		"nothing":                 {nil, ""},
		"orders of nothing":       {fakeVars{name("SysPrepOrder"): nil, name("DriverOrder"): {7}, name("OsIndications"): {}}, ""},
		"a program before":        {fakeVars{name("SysPrepOrder"): order(3, 1), name("SysPrep0001"): entryOf("diag", true, diskPath)}, `it runs SysPrep0001 "diag" before its boot order`},
		"one that is off":         {fakeVars{name("SysPrepOrder"): order(1), name("SysPrep0001"): entryOf("diag", false, diskPath)}, ""},
		"one that is in no order": {fakeVars{name("SysPrep0001"): entryOf("diag", true, diskPath)}, ""},
		"a driver":                {fakeVars{name("DriverOrder"): order(0x1a), name("Driver001A"): entryOf("nvme", true, diskPath)}, `it runs Driver001A "nvme" before`},
		"its setup":               {fakeVars{name("OsIndications"): {1, 0, 0, 0, 0, 0, 0, 0}}, "(0x1) ask at the next start for its setup"},
		"a capsule":               {fakeVars{name("OsIndications"): {4, 0, 0, 0, 0, 0, 0, 0}}, "an update that lies on a disk"},
		"its recovery":            {fakeVars{name("OsIndications"): {0x40, 0, 0, 0, 0, 0, 0, 0}}, "its own recovery"},
		"a report of capsules":    {fakeVars{name("OsIndications"): {0x10, 0, 0, 0, 0, 0, 0, 0}}, ""},
	} {
		vars := serverVars()
		maps.Copy(vars, c.set)
		if have := besideOrder(vars); c.want == "" && have != "" || !strings.Contains(have, c.want) {
			t.Errorf("%s: %q, want %q", what, have, c.want)
		}
	}
}

// OVMF makes a new entry for its disk at each start.
func TestEntriesThatFirmwareMakesAnewDoNotPileUp(t *testing.T) {
	vars := serverVars()
	for range 5 {
		if _, err := setNetworkOrder(vars, refusing, someParts); err != nil {
			t.Fatal(err)
		}
		vars[bootName(9)] = slices.Clone(vars[bootName(0)])
		vars[bootOrder] = append(order(2, 9), vars[bootOrder]...)
	}
	if _, err := setNetworkOrder(vars, refusing, someParts); err != nil || vars[bootName(9)] != nil || vars[bootName(0)] == nil {
		t.Errorf("%v; there are %d variables", err, len(vars))
	}
}

func TestOneOfTwoEqualEntriesStays(t *testing.T) {
	vars := serverVars()
	vars[bootName(7)] = slices.Clone(vars[bootName(0)])
	vars[bootOrder] = order(0, 7, 1)
	if _, err := setNetworkOrder(vars, refusing, someParts); err != nil || vars[bootName(0)] != nil || vars[bootName(7)] == nil {
		t.Errorf("%v; the first is there: %t, the second: %t", err, vars[bootName(0)] != nil, vars[bootName(7)] != nil)
	}
}

// stubborn forgets what is written to its boot order.
type stubborn struct{ fakeVars }

func (v stubborn) Set(name string, a uint32, b []byte) error {
	if name == bootOrder {
		return nil
	}
	return v.fakeVars.Set(name, a, b)
}

func TestAnOrderThatIsNotKeptIsAnError(t *testing.T) {
	if _, err := setNetworkOrder(stubborn{serverVars()}, refusing, someParts); err == nil || !strings.Contains(err.Error(), "it was set, and its boot order has") {
		t.Errorf("%v", err)
	}
	vars := serverVars()
	vars[bootOrder], vars[bootCurrent] = order(0, 4), order(0)
	before := maps.Clone(vars)
	if _, err := setNetworkOrder(vars, refusing, someParts); !errors.Is(err, errNoNetworkEntry) || !maps.EqualFunc(before, vars, bytes.Equal) {
		t.Errorf("%v; without a card nothing may change", err)
	}
}

func TestNothingIsErasedWhereTheFirmwareCannotBeKeptFromTheDisk(t *testing.T) {
	p := packImage(t, gptImage(t, testImageSize, 1))
	s := serveBytes(t, p)
	d, _ := diskFile(t, 16*MiB, 0xA5)
	before := readAll(t, d)
	for what, vars := range map[string]Variables{"a BIOS": nil, "no card": fakeVars{bootOrder: order(0), bootName(0): entryOf("debian", true, diskPath)}} {
		w := testWork(p, d, []byte("config"), s.URL)
		w.Job.EFI, w.EFI = &refusing, vars
		if _, err := Write(context.Background(), w); err == nil || !strings.HasPrefix(err.Error(), "check the boot order: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !bytes.Equal(before, readAll(t, d)) {
		t.Error("the disk was changed")
	}
}

func TestGateTellsOfTheOrderItFoundAndMendsIt(t *testing.T) {
	p := packImage(t, gptImage(t, testImageSize, 1))
	s := serveBytes(t, p)
	d, _ := diskFile(t, 16*MiB, 0xA5)
	w := testWork(p, d, volume(t, "cloud-init"), s.URL)
	vars := serverVars()
	e := refusing // a file of that volume stands for the program
	e.Again = &inventory.EFIProgram{File: `\recast.json`}
	w.Job.EFI, w.EFI = &e, vars
	got, err := Write(context.Background(), w)
	if err != nil || got.BootEntry != "" || !bytes.Equal(vars[bootOrder], order(2, 1, 6)) || vars[bootNextName] != nil {
		t.Fatalf("%v, %q, order %x, next %x: the first start is the gate's", err, got.BootEntry, vars[bootOrder], vars[bootNextName])
	}
	program, err := ReadConfigFile(d, d.Size(), e.Again.Name())
	if err != nil || program == nil {
		t.Fatal(err)
	}
	e.Again.Digest = inventory.DigestOf(program)
	w.Job.Kind, w.Job.Config, w.Config, w.Job.Limit = inventory.JobGate, nil, nil, 1<<20
	w.Job.Regions = []inventory.Region{{Name: "esp", Start: MiB, End: 2 * MiB}}
	gate := func() Result {
		t.Helper()
		w.Progress = &Progress{}
		got, err := Gate(context.Background(), w)
		if err != nil || !got.Verdict.Matches() {
			t.Fatalf("%v, %+v", err, got.Verdict)
		}
		return got
	}
	if got := gate(); got.Unguarded != "" || got.BootOrder != "020001000600" {
		t.Errorf("%q, order %s", got.Unguarded, got.BootOrder)
	}
	vars[bootOrder] = order(0, 2, 1, 6)
	if got := gate(); !strings.Contains(got.Unguarded, `"debian"`) || !strings.HasSuffix(got.Unguarded, "; it was set anew") || got.BootOrder != "020001000600" {
		t.Errorf("%q, order %s", got.Unguarded, got.BootOrder)
	}
	if got := gate(); got.Unguarded != "" {
		t.Errorf("mended, and still %q", got.Unguarded)
	}
	indications := "OsIndications-" + globalVariable
	vars[indications] = []byte{0x40, 0, 0, 0, 0, 0, 0, 0}
	if got := gate(); !strings.Contains(got.Unguarded, "its own recovery") || vars[indications] == nil {
		t.Errorf("%q, with %x", got.Unguarded, vars[indications])
	}
	delete(vars, indications)
	// Nor does a repair that was cut keep it from that.
	first := readAll(t, d)[:MiB]
	marks, _ := pack.Marks(first)
	suspend := func(yes bool) {
		for _, m := range marks {
			b := m.Live
			if yes {
				b = m.Suspended
			}
			if _, err := d.WriteAt(b, m.At); err != nil {
				t.Fatal(err)
			}
		}
	}
	suspend(true)
	vars[bootOrder], w.Progress = order(0, 2, 1, 6), &Progress{}
	if got, err := Gate(context.Background(), w); err != nil || !got.Verdict.Suspended || !strings.HasSuffix(got.Unguarded, "; it was set anew") || got.BootOrder != "020001000600" {
		t.Errorf("%v, %+v, %q, order %s", err, got.Verdict, got.Unguarded, got.BootOrder)
	}
	suspend(false)
	delete(vars, bootName(5)) // firmware collects what is in no order
	if got := gate(); got.Unguarded != "" || vars[bootName(5)] == nil {
		t.Errorf("%q; the disk has an entry: %t", got.Unguarded, vars[bootName(5)] != nil)
	}
	at := int64(bytes.Index(readAll(t, d), program))
	flip(t, d, at)
	if got := gate(); !strings.Contains(got.Unguarded, "the program that starts it over is not what was written") {
		t.Errorf("%q", got.Unguarded)
	}
	w.EFI = nil
	if got := gate(); !strings.Contains(got.Unguarded, "no boot order") || got.BootOrder != "" {
		t.Errorf("%q, order %s", got.Unguarded, got.BootOrder)
	}
}
