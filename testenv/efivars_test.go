package testenv

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
)

// efiEmpty is a variable store without variables.
func efiEmpty() []byte {
	vars := bytes.Repeat([]byte{0xff}, 4096)
	binary.LittleEndian.PutUint16(vars[48:], 72)
	binary.LittleEndian.PutUint32(vars[72+16:], 2048)
	return vars
}

func TestEFIVariableReplacesTheOldOne(t *testing.T) {
	vars, err := efiBootHTTP(efiEmpty(), "http://10.0.0.1/a.efi")
	if err != nil {
		t.Fatal(err)
	}
	if vars, err = efiBootHTTP(vars, "http://10.0.0.1/b.efi"); err != nil {
		t.Fatal(err)
	}
	live := map[string][]byte{}
	n := 0
	for at := 72 + 28; binary.LittleEndian.Uint16(vars[at:]) == 0x55aa; n++ {
		name, data := int(binary.LittleEndian.Uint32(vars[at+36:])), int(binary.LittleEndian.Uint32(vars[at+40:]))
		if vars[at+2] == 0x3f {
			live[string(vars[at+60:at+60+name])] = vars[at+60+name : at+60+name+data]
		}
		at = (at + 60 + name + data + 3) &^ 3
	}
	option, next := live[string(efiUTF16("Boot2ACF"))], live[string(efiUTF16("BootNext"))]
	if n != 4 || len(live) != 2 || !bytes.Contains(option, []byte("http://10.0.0.1/b.efi\x7f\xff\x04\x00")) || !bytes.Equal(next, []byte{0xcf, 0x2a}) {
		t.Errorf("%d variables, alive %q", n, live)
	}
}

func TestEFIVariablesThatAreNoneAreRefused(t *testing.T) {
	full := efiEmpty()
	binary.LittleEndian.PutUint32(full[72+16:], 40)
	for name, vars := range map[string][]byte{"nothing": nil, "zeros": make([]byte, 200), "no room": full} {
		if _, err := efiBootHTTP(vars, "http://10.0.0.1/a.efi"); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func FuzzEFIVariables(f *testing.F) {
	f.Add(efiEmpty())
	if real, err := os.ReadFile(qemuOVMFVars); err == nil {
		f.Add(real[:4096])
	}
	f.Fuzz(func(t *testing.T, vars []byte) {
		out, err := efiBootHTTP(vars, "http://h/x")
		if err == nil && len(out) != len(vars) {
			t.Errorf("%d bytes became %d", len(vars), len(out))
		}
	})
}
