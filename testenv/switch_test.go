package testenv

import (
	"encoding/binary"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// switchEnd is a cable of a switch without a kernel: a packet socket pair keeps
// frames apart as a tap does.
type switchEnd struct {
	t *testing.T
	*os.File
}

func plugEnd(t *testing.T, s *Switch, c PortConfig) switchEnd {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.Plug(os.NewFile(uintptr(fds[0]), "switch"), c)
	end := switchEnd{t, os.NewFile(uintptr(fds[1]), "card")}
	t.Cleanup(func() { end.Close() })
	return end
}

// switchFrame is one from the card from to the card to (255: all), with a number in
// it, tagged where vlan is not 0.
func switchFrame(to, from byte, vlan uint16, number int) []byte {
	hw := func(n byte) []byte {
		if n == 255 {
			return []byte{255, 255, 255, 255, 255, 255}
		}
		return []byte{2, 0, 0, 0, 0, n}
	}
	b := slices.Concat(hw(to), hw(from))
	if vlan != 0 {
		b = binary.BigEndian.AppendUint16(b, etherVLAN)
		b = binary.BigEndian.AppendUint16(b, vlan|5<<13) // with a priority
	}
	b = binary.BigEndian.AppendUint16(b, 0x88b5)
	return binary.BigEndian.AppendUint32(b, uint32(number))
}

func (e switchEnd) send(b []byte) {
	e.t.Helper()
	if _, err := e.Write(b); err != nil {
		e.t.Fatal(err)
	}
}

// next is the VLAN (0: no tag) and number of the next frame.
func (e switchEnd) next() (vlan uint16, number int) {
	e.t.Helper()
	_ = e.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 100)
	n, err := e.Read(buf)
	if err != nil {
		e.t.Fatal(err)
	}
	b := buf[:n]
	if binary.BigEndian.Uint16(b[12:]) == etherVLAN {
		vlan, b = binary.BigEndian.Uint16(b[14:]), b[4:]
	}
	return vlan, int(binary.BigEndian.Uint32(b[14:]))
}

func TestSwitchKeepsVLANsApart(t *testing.T) {
	var s Switch
	defer s.Close()
	a100 := plugEnd(t, &s, PortConfig{Access: 100})
	b100 := plugEnd(t, &s, PortConfig{Access: 100})
	a200 := plugEnd(t, &s, PortConfig{Access: 200})
	trunk := plugEnd(t, &s, PortConfig{Trunk: []uint16{100, 200}})
	native := plugEnd(t, &s, PortConfig{Access: 200, Trunk: []uint16{100}})
	for i, row := range []struct {
		name string
		from switchEnd
		vlan uint16
		to   map[*switchEnd]uint16 // the tag it has there
	}{
		{"from an access port", a100, 0, map[*switchEnd]uint16{&b100: 0, &trunk: 100, &native: 100}},
		{"from the other VLAN", a200, 0, map[*switchEnd]uint16{&trunk: 200, &native: 0}},
		{"tagged from a trunk", trunk, 100, map[*switchEnd]uint16{&a100: 0, &b100: 0, &native: 100}},
		{"tagged into another VLAN", trunk, 200, map[*switchEnd]uint16{&a200: 0, &native: 0}},
		{"without a tag from a trunk that has a VLAN for it", native, 0, map[*switchEnd]uint16{&a200: 0, &trunk: 200}},
		{"without a tag from a trunk that has none", trunk, 0, nil},
		{"of a VLAN that the trunk does not carry", trunk, 300, nil},
		{"tagged into an access port", a100, 200, nil},
	} {
		row.from.send(switchFrame(255, byte(i+1), row.vlan, i))
		for e, want := range row.to {
			if vlan, n := e.next(); vlan != want || n != i {
				t.Errorf("%s: frame %d came with tag %d; want frame %d with tag %d", row.name, n, vlan, i, want)
			}
		}
	}
	// What went where it should not would be there by now.
	for i, e := range []switchEnd{a100, b100, a200, trunk, native} {
		_ = e.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		if n, err := e.Read(make([]byte, 100)); err == nil {
			t.Errorf("port %d saw a frame of %d bytes more", i, n)
		}
	}
}

func TestSwitchLearnsWhereACardIs(t *testing.T) {
	var s Switch
	defer s.Close()
	a, b, c := plugEnd(t, &s, PortConfig{Access: 1}), plugEnd(t, &s, PortConfig{Access: 1}), plugEnd(t, &s, PortConfig{Access: 1})
	a.send(switchFrame(255, 1, 0, 1))
	for _, e := range []switchEnd{b, c} {
		if _, n := e.next(); n != 1 {
			t.Errorf("a broadcast came as %d", n)
		}
	}
	b.send(switchFrame(1, 2, 0, 2)) // to a's card alone
	b.send(switchFrame(255, 2, 0, 3))
	if _, n := a.next(); n != 2 {
		t.Errorf("the card heard %d first", n)
	}
	if _, n := c.next(); n != 3 {
		t.Errorf("a stranger heard %d first; want the broadcast", n)
	}
}

// run sends count frames through a port and returns the numbers that came out.
func (i Impairment) run(t *testing.T, count int) (got []int) {
	t.Helper()
	var s Switch
	defer s.Close()
	in, out := plugEnd(t, &s, PortConfig{Access: 1}), plugEnd(t, &s, PortConfig{Access: 1, Impairment: i})
	for i := range count {
		in.send(switchFrame(255, 1, 0, i))
		if i%64 == 63 { // no more than a socket holds
			for len(got) == 0 || got[len(got)-1] < i-32 {
				_, n := out.next()
				got = append(got, n)
			}
		}
	}
	for {
		_ = out.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		buf := make([]byte, 100)
		n, err := out.Read(buf)
		if err != nil {
			return got
		}
		got = append(got, int(binary.BigEndian.Uint32(buf[14:n])))
	}
}

func TestSwitchLosesDoublesAndReordersBySeed(t *testing.T) {
	const count = 1000
	bad := Impairment{Loss: 0.1, Duplicate: 0.05, Reorder: 0.05, Seed: 7}
	first := bad.run(t, count)
	if second := bad.run(t, count); !slices.Equal(first, second) {
		t.Error("the same seed chose other frames")
	}
	bad.Seed = 8
	if other := bad.run(t, count); slices.Equal(first, other) {
		t.Error("another seed chose the same frames")
	}
	seen, twice, late := map[int]bool{}, 0, 0
	for i, n := range first {
		if seen[n] {
			twice++
		} else if i > 0 && n < first[i-1] {
			late++
		}
		seen[n] = true
	}
	if lost := count - len(seen); lost < count/20 || lost > count/5 {
		t.Errorf("%d of %d frames were lost; want about %d", lost, count, count/10)
	}
	for _, share := range []int{twice, late} {
		if share < count/50 || share > count/10 {
			t.Errorf("%d came twice, %d late; want about %d", twice, late, count/20)
		}
	}
	if clean := (Impairment{}).run(t, count); len(clean) != count || !slices.IsSorted(clean) {
		t.Errorf("a good port let %d of %d through", len(clean), count)
	}
}

func TestSwitchDelaysFrames(t *testing.T) {
	var s Switch
	defer s.Close()
	const delay = 50 * time.Millisecond
	in, out := plugEnd(t, &s, PortConfig{Access: 1}), plugEnd(t, &s, PortConfig{Access: 1, Impairment: Impairment{Delay: delay}})
	start := time.Now()
	in.send(switchFrame(255, 1, 0, 1))
	in.send(switchFrame(255, 1, 0, 2))
	for want := 1; want <= 2; want++ {
		if _, n := out.next(); n != want {
			t.Errorf("frame %d came; want %d", n, want)
		}
	}
	if took := time.Since(start); took < delay {
		t.Errorf("it took %v", took)
	}
}
