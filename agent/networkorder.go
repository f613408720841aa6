package agent

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"recast/inventory"
	"recast/pack"
)

// A machine that must not start its disk without the server has a boot order of
// network entries alone, and behind them a program that starts the machine over. Without
// that one firmware goes on at the order's end, by its own rules, and finds the
// removable-media path of any disk (UEFI specification, 3.4.2: platform recovery). What
// firmware puts behind the program is never reached. The disk has an entry outside of
// the order, for BootNext.

// activeOption and categoryOption are bits of a load option's attributes: firmware
// passes over one that is not active, or no boot entry (UEFI specification, 3.1.3).
const (
	activeOption   = 0x1
	categoryOption = 0x1f00
)

// errNoNetworkEntry ends an attempt before anything is erased.
var errNoNetworkEntry = errors.New("no entry of the firmware's boot order leads to the network: enable network boot in its setup, and let the machine start by it")

// hasNode tells whether the first instance of a device path, which is what firmware
// starts, has a node of that type and one of these subtypes.
func hasNode(path []byte, kind byte, subs ...byte) bool {
	for p := path; len(p) >= 4; {
		n := int(binary.LittleEndian.Uint16(p[2:]))
		if n < 4 || n > len(p) || p[0] == 0x7f {
			return false
		}
		if p[0] == kind && slices.Contains(subs, p[1]) {
			return true
		}
		p = p[n:]
	}
	return false
}

// toNetwork tells whether an entry leads to the network: by a hardware address, IPv4,
// IPv6 or a URI (UEFI specification, 10.3.4.11, 12, 13 and 23), and not on to a disk
// there, by iSCSI or NVMe over fabrics.
func (o LoadOption) toNetwork() bool {
	return hasNode(o.Path, 3, 11, 12, 13, 24) && !hasNode(o.Path, 3, 19, 34)
}

// readOption reads an entry; ok is false where there is none that can be read.
func readOption(vars Variables, n uint16) (o LoadOption, ok bool) {
	b, err := vars.Get(bootName(n))
	if err != nil {
		return o, false
	}
	o, err = ParseLoadOption(b)
	return o, err == nil
}

// networkEntries of the boot order, the one that the ramdisk came by first.
func networkEntries(vars Variables) (list []uint16, err error) {
	order, err := readOrder(vars)
	if err != nil {
		return nil, err
	}
	if came, err := vars.Get(bootCurrent); err == nil && len(came) == 2 {
		order = slices.Insert(order, 0, binary.LittleEndian.Uint16(came))
	}
	for _, n := range order {
		if o, ok := readOption(vars, n); ok && o.toNetwork() && o.Attributes&activeOption != 0 && !slices.Contains(list, n) {
			list = append(list, n)
		}
	}
	if len(list) == 0 {
		return nil, errNoNetworkEntry
	}
	return list, nil
}

// canRefuse says why the firmware cannot be kept from the disk.
func canRefuse(vars Variables) error {
	if vars == nil {
		return errors.New("the firmware has no boot order that can be set from here")
	}
	_, err := networkEntries(vars)
	return err
}

// canRefuse comes before anything is erased for a machine that could not be what it is
// declared to be.
func (j *writer) canRefuse(context.Context) error {
	if j.Job.EFI == nil || j.Job.EFI.Again == nil {
		return nil
	}
	return canRefuse(j.EFI)
}

// parts are the partitions that our entries lead to, as a disk's table has them.
type parts struct{ esp, volume systemPart }

func bootParts(first []byte, size int64) (p parts, err error) {
	var ok bool
	if p.esp, ok = systemPartition(first, size); !ok {
		return p, errors.New("the disk has no EFI system partition")
	}
	if p.volume, ok = partition(first, size, func(q pack.Partition) bool { return slices.Contains(configLabels, q.Name) }); !ok {
		return p, errors.New("the disk has no configuration volume")
	}
	return p, nil
}

// throughNetwork says why the firmware, by the order it has now, would start something
// before again, or never come there; "" it would not.
func throughNetwork(vars Variables, again LoadOption) string {
	order, err := readOrder(vars)
	if err != nil {
		return err.Error()
	}
	networks := 0
	for _, n := range order {
		o, ok := readOption(vars, n)
		switch {
		case !ok || o.Attributes&activeOption == 0 || o.Attributes&categoryOption != 0:
		case o.toNetwork():
			networks++
		case !bytes.Equal(o.Encode(), again.Encode()):
			return fmt.Sprintf("its boot order has Boot%04X %q before the end", n, printable(o.Description))
		case networks == 0:
			return "its boot order has no entry that leads to the network"
		default:
			return ""
		}
	}
	return "its boot order goes on to whatever disk the firmware finds"
}

// besideOrder says what the firmware would run before its boot order or instead of it
// (UEFI specification, 3.1.3, 3.3 and 8.5.4); "" nothing. Whose it is nobody here can know:
// it is told, and left.
func besideOrder(vars Variables) string {
	for _, kind := range []string{"Driver", "SysPrep"} {
		order, err := vars.Get(kind + "Order-" + globalVariable)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err.Error()
		}
		for ; len(order) >= 2; order = order[2:] {
			name := fmt.Sprintf("%s%04X", kind, binary.LittleEndian.Uint16(order))
			b, err := vars.Get(name + "-" + globalVariable)
			if err != nil {
				continue // there is none
			}
			if o, err := ParseLoadOption(b); err == nil && o.Attributes&activeOption != 0 {
				return fmt.Sprintf("it runs %s %q before its boot order: remove that, by its setup or efibootmgr", name, printable(o.Description))
			}
		}
	}
	b, err := vars.Get("OsIndications-" + globalVariable)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err.Error()
	}
	b = append(b, make([]byte, 8)...)
	asked := binary.LittleEndian.Uint64(b)
	for _, what := range []struct {
		bit  uint64
		text string
	}{{0x01, "its setup"}, {0x04, "an update that lies on a disk"}, {0x20, "the system's recovery"}, {0x40, "its own recovery, which starts any disk"}} {
		if asked&what.bit != 0 {
			return fmt.Sprintf("its OsIndications (%#x) ask at the next start for %s: restart it, and clear that variable if this stays", asked, what.text)
		}
	}
	return ""
}

// setNetworkOrder makes the boot order network entries and again, where it would lead
// elsewhere, and sees to it that there is an entry for the disk, outside of it. What else
// the order had keeps its entry.
func setNetworkOrder(vars Variables, e inventory.EFIEntry, p parts) (string, error) {
	networks, err := networkEntries(vars)
	if err != nil {
		return "", err
	}
	before, err := readOrder(vars)
	if err != nil {
		return "", err
	}
	disk, drop, err := putOption(vars, bootOption(e.Label, e.Loader, p.esp))
	if err != nil {
		return "", err
	}
	again, older, err := putOption(vars, againOption(e, p))
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("the firmware's boot order is %s, which lead to the network, and Boot%04X, which starts it over; Boot%04X %q starts the disk when it is told to",
		bootEntryNames(networks), again, disk, e.Label)
	drop = append(drop, older...)
	if len(drop) == 0 && throughNetwork(vars, againOption(e, p)) == "" {
		return text, nil
	}
	order := append(networks, again)
	for _, n := range before {
		if n != disk && !slices.Contains(order, n) && !slices.Contains(drop, n) && copied(vars, n, drop) {
			drop = append(drop, n) // firmware makes one at each start for a disk that its order lacks
		}
	}
	if err := dropEntries(vars, drop, order); err != nil {
		return "", err
	}
	if why := throughNetwork(vars, againOption(e, p)); why != "" {
		return "", fmt.Errorf("it was set, and %s", why)
	}
	return text, nil
}

// copied tells whether another entry is the same, that is not to be dropped itself.
func copied(vars Variables, n uint16, drop []uint16) bool {
	o, ok := readOption(vars, n)
	if !ok {
		return false
	}
	same, _, err := labelled(vars, o.Description, func(p LoadOption) bool { return bytes.Equal(o.Encode(), p.Encode()) })
	return err == nil && slices.ContainsFunc(same, func(m uint16) bool { return m != n && !slices.Contains(drop, m) })
}

func againOption(e inventory.EFIEntry, p parts) LoadOption {
	return bootOption(inventory.AgainLabel, e.Again.File, p.volume)
}

// refuse looks at the boot order as the firmware has it now, says in the result why it
// would have led to the disk, and sets it anew where it would. Nothing of that fails the
// job: what is on the disk is another question.
func (g *prover) refuse(context.Context) error {
	e := g.Job.EFI
	if e == nil || e.Again == nil {
		return nil
	}
	g.result.Unguarded = g.keepOrder(*e)
	if g.EFI != nil {
		g.result.BootOrder = hexVariable(g.EFI, bootOrder)
	}
	if g.result.Unguarded != "" {
		g.Log("without the server its firmware would start a disk: %s", g.result.Unguarded)
	}
	return nil
}

func (g *prover) keepOrder(e inventory.EFIEntry) string {
	if err := canRefuse(g.EFI); err != nil {
		return err.Error()
	}
	first := make([]byte, min(g.size, MiB))
	if _, err := g.Disk.ReadAt(first, 0); err != nil {
		return fmt.Sprintf("read the partition table: %v", err)
	}
	first, _ = pack.Resumed(first) // a repair that was cut left it so
	p, err := bootParts(first, g.size)
	if err != nil {
		return err.Error()
	}
	found := throughNetwork(g.EFI, againOption(e, p))
	_, err = setNetworkOrder(g.EFI, e, p)
	switch {
	case err != nil:
		found = fmt.Sprintf("%s; it cannot be set: %v", cmp.Or(found, "its boot order is right"), err)
	case found != "":
		found += "; it was set anew"
	}
	if program, err := ReadConfigFile(g.Disk, g.size, e.Again.Name()); err != nil || inventory.DigestOf(program) != e.Again.Digest {
		found = "the program that starts it over is not what was written to its configuration volume: recast retry writes that anew"
	}
	if beside := besideOrder(g.EFI); beside != "" {
		if found != "" {
			found += "; "
		}
		found += beside
	}
	return found
}

// leadToDisk undoes setNetworkOrder where there is no job that names a disk: the entry that
// starts the machine over goes, and the one for the disk, which stands outside of the order,
// is second in it. "" there was no such entry.
func leadToDisk(vars Variables) (string, error) {
	if vars == nil {
		return "", nil
	}
	again, _, err := labelled(vars, inventory.AgainLabel, anyOption)
	if err != nil || len(again) == 0 {
		return "", err
	}
	disk, _, err := labelled(vars, inventory.BootLabel, anyOption)
	if err != nil {
		return "", err
	}
	order, err := readOrder(vars)
	if err != nil {
		return "", err
	}
	order = slices.DeleteFunc(order, func(n uint16) bool { return slices.Contains(again, n) || slices.Contains(disk, n) })
	text := bootEntryNames(again) + ", which started it over, is gone from the firmware's boot order; it goes on to whatever disk the firmware finds"
	if len(disk) > 0 {
		order = cameFirst(vars, order, disk[0])
		order = slices.Insert(order, min(1, len(order)), disk[0])
		text = fmt.Sprintf("%s, which started it over, is gone from the firmware's boot order; Boot%04X, which starts the disk, is in it again", bootEntryNames(again), disk[0])
	}
	if err := dropEntries(vars, again, order); err != nil {
		return "", err
	}
	if now, err := readOrder(vars); err != nil || !slices.Equal(now, order) {
		return "", fmt.Errorf("the boot order reads back as %s, not as %s (%v)", bootEntryNames(now), bootEntryNames(order), err)
	}
	return text, nil
}

// freeDisk does so by the server's word. What the firmware does not take, it is told on
// the screen, and asked again at the next start.
func freeDisk(vars Variables, log func(string, ...any)) bool {
	text, err := leadToDisk(vars)
	if err != nil {
		log("the firmware's boot order still leads to no disk: %v", err)
	} else if text != "" {
		log("%s", text)
	}
	return err == nil && text != ""
}
