package agent

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"unicode/utf16"

	"recast/inventory"
	"recast/pack"
)

// globalVariable is the vendor GUID of BootOrder and Boot#### (UEFI
// specification, section 3.3).
const globalVariable = "8be4df61-93ca-11d2-aa0d-00e098032b8c"

// Attributes of a variable: non-volatile, and seen by boot services and the OS.
const bootVariable = 0x7

// Variables are the firmware's variables, by the names efivarfs gives them:
// "Boot0001-8be4df61-…". A missing one is fs.ErrNotExist.
type Variables interface {
	List() ([]string, error)
	Get(name string) ([]byte, error)
	Set(name string, attributes uint32, value []byte) error
	Delete(name string) error
}

// LoadOption is one boot entry (UEFI specification, section 3.1.3).
type LoadOption struct {
	Attributes  uint32 // bit 0: active
	Description string
	Path        []byte // the packed device path, its end node included
	Data        []byte
}

// ParseLoadOption decodes the value of a Boot#### variable.
func ParseLoadOption(b []byte) (LoadOption, error) {
	if len(b) < 8 {
		return LoadOption{}, errors.New("parse load option: too short")
	}
	o := LoadOption{Attributes: binary.LittleEndian.Uint32(b)}
	pathLen := int(binary.LittleEndian.Uint16(b[4:]))
	rest := b[6:]
	var text []uint16
	for {
		if len(rest) < 2 {
			return LoadOption{}, errors.New("parse load option: the description has no end")
		}
		c := binary.LittleEndian.Uint16(rest)
		rest = rest[2:]
		if c == 0 {
			break
		}
		text = append(text, c)
	}
	if len(rest) < pathLen {
		return LoadOption{}, fmt.Errorf("parse load option: device path of %d bytes in %d", pathLen, len(rest))
	}
	o.Description = string(utf16.Decode(text))
	o.Path, o.Data = slices.Clone(rest[:pathLen]), slices.Clone(rest[pathLen:])
	return o, nil
}

// byHTTPBoot tells whether the entry that the firmware started by leads to a URI, as
// those for HTTP Boot do (UEFI specification, sections 10.3.4.23 and 24.7).
func byHTTPBoot(v Variables) bool {
	current, err := v.Get("BootCurrent-" + globalVariable)
	if err != nil || len(current) != 2 {
		return false
	}
	b, err := v.Get(fmt.Sprintf("Boot%04X-%s", binary.LittleEndian.Uint16(current), globalVariable))
	if err != nil {
		return false
	}
	o, err := ParseLoadOption(b)
	if err != nil {
		return false
	}
	return hasNode(o.Path, 3, 24)
}

// Encode is the inverse of ParseLoadOption.
func (o LoadOption) Encode() []byte {
	b := binary.LittleEndian.AppendUint32(nil, o.Attributes)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(o.Path)))
	b = appendUCS2(b, o.Description)
	b = append(b, o.Path...)
	return append(b, o.Data...)
}

func appendUCS2(b []byte, s string) []byte {
	for _, c := range utf16.Encode([]rune(s)) {
		b = binary.LittleEndian.AppendUint16(b, c)
	}
	return append(b, 0, 0)
}

// systemPart is a partition with a file system for the firmware, as entries name it.
type systemPart struct {
	number        int
	start, blocks uint64 // in logical blocks
	id            pack.GUID
}

func systemPartition(first []byte, diskSize int64) (systemPart, bool) {
	return partition(first, diskSize, func(p pack.Partition) bool { return p.Type == pack.TypeESP.String() })
}

// partition is the first one that is wanted, of the table in a disk's first MiB.
func partition(first []byte, diskSize int64, wanted func(pack.Partition) bool) (systemPart, bool) {
	layout, block, err := pack.ParseLayout(first, diskSize)
	if err != nil || layout.Scheme != pack.SchemeGPT {
		return systemPart{}, false
	}
	for _, p := range layout.Partitions {
		if id, err := pack.ParseGUID(p.GUID); err == nil && wanted(p) {
			return systemPart{number: p.Number, start: uint64(p.Start) / uint64(block),
				blocks: uint64(p.End-p.Start) / uint64(block), id: id}, true
		}
	}
	return systemPart{}, false
}

// bootOption points at a loader on a system partition: the short form of a
// device path, which firmware completes by looking for the partition's GUID
// (UEFI specification, sections 3.1.2 and 10.3.5).
func bootOption(label, loader string, esp systemPart) LoadOption {
	hd := []byte{4, 1, 42, 0}
	hd = binary.LittleEndian.AppendUint32(hd, uint32(esp.number))
	hd = binary.LittleEndian.AppendUint64(hd, esp.start)
	hd = binary.LittleEndian.AppendUint64(hd, esp.blocks)
	hd = append(hd, esp.id[:]...)
	hd = append(hd, 2, 2) // a GPT, and the signature is a GUID

	name := appendUCS2(nil, strings.ReplaceAll(loader, "/", `\`))
	file := append([]byte{4, 4}, byte(len(name)+4), byte((len(name)+4)>>8))
	file = append(file, name...)
	return LoadOption{Attributes: activeOption, Description: label,
		Path: slices.Concat(hd, file, []byte{0x7f, 0xff, 4, 0})}
}

// bootNumber is the number of a Boot#### variable.
func bootNumber(name string) (uint16, bool) {
	digits, ok := strings.CutSuffix(strings.ToLower(name), "-"+globalVariable)
	if !ok || len(digits) != 8 || digits[:4] != "boot" {
		return 0, false
	}
	var n uint16
	for _, c := range digits[4:] {
		k := strings.IndexRune("0123456789abcdef", c)
		if k < 0 {
			return 0, false
		}
		n = n<<4 | uint16(k)
	}
	return n, true
}

func bootName(n uint16) string { return fmt.Sprintf("Boot%04X-%s", n, globalVariable) }

const (
	bootOrder   = "BootOrder-" + globalVariable
	bootCurrent = "BootCurrent-" + globalVariable
	secureBoot  = "SecureBoot-" + globalVariable
)

// hexVariable is "" for a variable that cannot be read.
func hexVariable(vars Variables, name string) string {
	b, err := vars.Get(name)
	if err != nil {
		return ""
	}
	return hex.EncodeToString(b)
}

// setBootEntry makes the firmware start e from esp, before everything else or behind
// the entry that it came by. It replaces the entries with e's label, which are ours,
// and touches no other. The returned text says what was done.
func setBootEntry(vars Variables, e inventory.EFIEntry, esp systemPart) (string, error) {
	if e.Label == "" || e.Loader == "" {
		return "", errors.New("the job's boot entry has no label or no loader")
	}
	number, ours, err := putOption(vars, bootOption(e.Label, e.Loader, esp))
	if err != nil {
		return "", err
	}
	again, _, err := labelled(vars, inventory.AgainLabel, anyOption)
	if err != nil {
		return "", err
	}
	ours = append(ours, again...)
	order, err := readOrder(vars)
	if err != nil {
		return "", err
	}
	order = slices.DeleteFunc(order, func(n uint16) bool { return n == number || slices.Contains(ours, n) })
	at, place := 0, "first"
	if e.Second {
		order, place = cameFirst(vars, order, number), "second"
		at = min(1, len(order))
	}
	order = slices.Insert(order, at, number)
	if err := dropEntries(vars, ours, order); err != nil {
		return "", err
	}
	return fmt.Sprintf("Boot%04X %q is %s in the firmware's boot order", number, e.Label, place), nil
}

// cameFirst puts the entry that the ramdisk came by first in an order, unless it is ours.
func cameFirst(vars Variables, order []uint16, ours uint16) []uint16 {
	came, err := vars.Get(bootCurrent)
	if err != nil || len(came) != 2 {
		return order
	}
	by := binary.LittleEndian.Uint16(came)
	if by == ours {
		return order
	}
	return slices.Insert(slices.DeleteFunc(order, func(n uint16) bool { return n == by }), 0, by)
}

// putOption writes an entry in the place of ours of its label, else in a new one. The
// other ones of the label are older, and to be removed.
func putOption(vars Variables, o LoadOption) (number uint16, older []uint16, err error) {
	ours, used, err := labelled(vars, o.Description, anyOption)
	if err != nil {
		return 0, nil, err
	}
	if len(ours) > 0 {
		number, older = ours[0], ours[1:]
	} else {
		for used[number] {
			if number == 0xffff {
				return 0, nil, errors.New("all boot numbers are taken")
			}
			number++
		}
	}
	if b, err := vars.Get(bootName(number)); err == nil && bytes.Equal(b, o.Encode()) {
		return number, older, nil // flash wears out
	}
	if err := vars.Set(bootName(number), bootVariable, o.Encode()); err != nil {
		return 0, nil, fmt.Errorf("write Boot%04X: %w", number, err)
	}
	return number, older, nil
}

// labelled are the numbers of the entries of that label that fit, sorted, and all that
// are taken. One that we cannot read is not ours.
func labelled(vars Variables, label string, fits func(LoadOption) bool) (ours []uint16, used map[uint16]bool, err error) {
	names, err := vars.List()
	if err != nil {
		return nil, nil, fmt.Errorf("list firmware variables: %w", err)
	}
	used = map[uint16]bool{}
	for _, name := range names {
		n, ok := bootNumber(name)
		if !ok {
			continue
		}
		used[n] = true
		if b, err := vars.Get(name); err == nil {
			if o, err := ParseLoadOption(b); err == nil && o.Description == label && fits(o) {
				ours = append(ours, n)
			}
		}
	}
	slices.Sort(ours)
	return ours, used, nil
}

// anyOption fits every label.
func anyOption(LoadOption) bool { return true }

// dropEntries writes an order without these entries, and removes them after.
func dropEntries(vars Variables, drop, order []uint16) error {
	var b []byte
	for _, n := range order {
		b = binary.LittleEndian.AppendUint16(b, n)
	}
	if err := vars.Set(bootOrder, bootVariable, b); err != nil {
		return fmt.Errorf("write BootOrder: %w", err)
	}
	for _, n := range drop {
		if err := vars.Delete(bootName(n)); err != nil {
			return fmt.Errorf("remove our old Boot%04X: %w", n, err)
		}
	}
	return nil
}

// removeBootEntries takes out our entries that lead to one of these partitions, and
// says which; "" there was none. What others made is not touched.
func removeBootEntries(vars Variables, parts []pack.GUID) (string, error) {
	leads := func(o LoadOption) bool {
		// As bootOption writes it.
		return len(o.Path) >= 42 && o.Path[0] == 4 && o.Path[1] == 1 && o.Path[41] == 2 && slices.Contains(parts, pack.GUID(o.Path[24:40]))
	}
	ours, _, err := labelled(vars, inventory.BootLabel, leads)
	if err != nil {
		return "", err
	}
	again, _, err := labelled(vars, inventory.AgainLabel, leads)
	if ours = append(ours, again...); err != nil || len(ours) == 0 {
		return "", err
	}
	order, err := readOrder(vars)
	if err != nil {
		return "", err
	}
	order = slices.DeleteFunc(order, func(n uint16) bool { return slices.Contains(ours, n) })
	if err := dropEntries(vars, ours, order); err != nil {
		return "", err
	}
	return fmt.Sprintf("our boot entry %s is removed", bootEntryNames(ours)), nil
}

func bootEntryNames(list []uint16) string {
	var names []string
	for _, n := range list {
		names = append(names, fmt.Sprintf("Boot%04X", n))
	}
	return strings.Join(names, ", ")
}

func readOrder(vars Variables) ([]uint16, error) {
	b, err := vars.Get(bootOrder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read BootOrder: %w", err)
	}
	var order []uint16
	for ; len(b) >= 2; b = b[2:] {
		order = append(order, binary.LittleEndian.Uint16(b))
	}
	return order, nil
}
