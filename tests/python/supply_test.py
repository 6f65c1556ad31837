"""Each rule of scripts/check-supply.py refuses what it is about, and nothing else. Run by `make supply`."""

import importlib.util
import pathlib
import sys
import unittest

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))
import supply  # noqa: E402


def script(name):
    spec = importlib.util.spec_from_file_location(name.replace("-", "_"), SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check, sbom, update = script("check-supply"), script("sbom"), script("update-advisories")


def package(name="a", version="1.0.0", **fields):
    usual = {"name": name, "version": version, "source": supply.REGISTRY, "checksum": "0" * 64, "license": "MIT"}
    return usual | fields


class Versions(unittest.TestCase):
    def test_comparators_are_cargos(self):
        cases = [
            ("1.2.3", ">= 1.2", True), ("1.2.3", "< 1.2.3", False), ("2.0.0-beta.4", ">= 2.0.0", False),
            ("2.0.0-beta.10", "> 2.0.0-beta.9", True), ("0.1.9", "^0.1", True), ("0.2.0", "^0.1", False),
            ("1.3.0", "~1.2", False), ("1.9.0", "~1", True), ("1.2.9", "<= 1.2", True), ("0.2.5", "=0.2.5", True),
            ("1.2.3", "> 1.2", False), ("0.0.4", "^0.0.3", False), ("1.5.0", "1", True), ("0.1.0", "^0.0", False),
            ("1.5.0", ">= 1.0, < 1.5.0", False), ("1.0.0+build", "=1.0.0", True), ("3.0.0", "*", True),
        ]
        for version, bound, expected in cases:
            self.assertEqual(supply.matches(version, [bound]), expected, (version, bound))

    def test_what_is_no_version_is_refused(self):
        for text in ("", "x", "1.2.3.4", "1..2"):
            with self.assertRaises(supply.Failure):
                supply.parse(text)


class Licences(unittest.TestCase):
    def test_expressions(self):
        cases = [
            ("MIT", True), ("GPL-3.0", False), ("GPL-3.0 OR MIT", True), ("MIT/Apache-2.0", True),
            ("MIT AND GPL-3.0", False), ("(MIT OR GPL-3.0) AND Apache-2.0", True), ("MIT / GPL-3.0", True),
            ("Apache-2.0 WITH LLVM-exception", False), ("Apache-2.0 WITH LLVM-exception OR MIT", True),
        ]
        for text, expected in cases:
            self.assertEqual(supply.is_allowed(supply.licences(text), {"MIT", "Apache-2.0"}), expected, text)
        for text in ("", "MIT OR", "(MIT", "MIT Apache-2.0", "AND MIT"):
            with self.assertRaises(supply.Failure):
                supply.licences(text)

    def findings(self, rules, packages, text=""):
        return " ".join(check.licence_findings({"allow": ["MIT"]} | rules, text, packages))

    def test_findings(self):
        self.assertEqual(self.findings({}, [package()]), "")
        self.assertIn("allow it", self.findings({}, [package(), package("b", license="GPL-3.0")]))
        self.assertIn("no licence", self.findings({}, [package(), package("b", license=None)]))
        self.assertIn("no package is under ISC", self.findings({"allow": ["MIT", "ISC"]}, [package()]))

    def test_exceptions_are_for_one_package_and_have_reasons(self):
        line = '{ crate = "b", allow = ["GPL-3.0"] },'
        rules = {"exceptions": [{"crate": "b", "allow": ["GPL-3.0"]}]}
        packages = [package(), package("b", license="GPL-3.0")]
        self.assertEqual(self.findings(rules, packages, line + " # it is ours"), "")
        self.assertIn("no reason", self.findings(rules, packages, line))
        self.assertIn("needs none", self.findings(rules, [package()], line + " # it is ours"))
        self.assertIn("c 1.0.0", self.findings(rules, [*packages, package("c", license="GPL-3.0")], line + " # x"))


class Sources(unittest.TestCase):
    def test_findings(self):
        rules = {"allow-registry": ["https://github.com/rust-lang/crates.io-index"]}
        cases = [
            ({}, ""),
            ({"source": "git+https://example.com/a?rev=1#2"}, "from git"),
            ({"source": "registry+https://example.com/index"}, "allows only"),
            ({"source": "sparse+https://example.com/index"}, "allows only"),
            ({"checksum": ""}, "no checksum"),
            ({"checksum": "xyz"}, "no checksum"),
        ]
        for fields, expected in cases:
            found = " ".join(check.source_findings(rules, [package(**fields)]))
            self.assertTrue(expected in found if expected else not found, (fields, found))

    def test_a_path_outside_the_workspace(self):
        outside = {"name": "a", "source": None, "manifest_path": "/elsewhere/Cargo.toml"}
        self.assertIn("outside", " ".join(check.members([outside], supply.ROOT)))


class Bans(unittest.TestCase):
    def test_findings(self):
        two = [package(version="1.0.0"), package(version="2.0.0+x")]
        skip = {"crate": "a@1.0.0", "reason": "b needs it"}
        cases = [
            ({}, [package()], ""),
            ({}, two, "versions 1.0.0, 2.0.0"),
            ({"skip": [skip]}, two, ""),
            ({"skip": [{"crate": "a@2.0.0", "reason": "x"}]}, two, ""),
            ({"skip": [skip]}, [*two, package(version="3.0.0")], "versions 2.0.0, 3.0.0"),
            ({"skip": [skip]}, [package()], "no duplicate any more"),
            ({"skip": [{"crate": "a@1.0.0"}]}, two, "has no reason"),
            ({"deny": [{"crate": "a", "reason": "no"}]}, [package()], "is banned"),
            ({"deny": [{"crate": "a@2.0.0", "reason": "no"}]}, [package()], ""),
        ]
        for rules, packages, expected in cases:
            found = " ".join(check.ban_findings(rules, packages))
            self.assertTrue(expected in found if expected else not found, (rules, found))


class Advisories(unittest.TestCase):
    ADVISORY = {"id": "X-1", "package": "a", "date": "2026-01-01", "summary": "memory corruption",
                "patched": [">= 1.1.0"], "unaffected": ["< 0.9.0"]}

    def findings(self, version, rules, yanked=(), packages=("a",)):
        snapshot = {"packages": packages, "yanked": yanked, "advisories": [self.ADVISORY]}
        return " ".join(check.advisory_findings(rules, [package(version=version)], snapshot))

    def test_findings(self):
        ignore = {"ignore": [{"id": "X-1", "reason": "not called"}]}
        self.assertIn("X-1", self.findings("1.0.0", {}))
        self.assertEqual(self.findings("1.1.0", {}), "")
        self.assertEqual(self.findings("0.8.9", {}), "")
        self.assertEqual(self.findings("1.0.0", ignore), "")
        self.assertIn("no version in Cargo.lock", self.findings("1.1.0", ignore))
        self.assertIn("no reason", self.findings("1.0.0", {"ignore": [{"id": "X-1"}]}))
        self.assertIn("yanked", self.findings("1.1.0", {}, yanked=["a 1.1.0"]))
        self.assertIn("newer than the snapshot", self.findings("1.1.0", {}, packages=()))

    def test_facts_are_read_from_the_databases_format(self):
        text = ('```toml\n[advisory]\nid = "X-1"\npackage = "a"\ndate = "2026-01-01"\ncategories = ["memory-exposure"]\n'
                '[versions]\npatched = [">= 1"]\n```\n# Title\n')
        read = update.read(text, "x.md")
        self.assertEqual((read["id"], read["summary"], read["patched"]), ("X-1", "memory exposure", [">= 1"]))
        withdrawn = text.replace('[versions]', 'withdrawn = "2026-02-01"\n[versions]')
        self.assertIsNone(update.read(withdrawn, "x.md"))
        with self.assertRaises(supply.Failure):
            update.read("# Title", "x.md")

    def test_places_in_the_index(self):
        for name, place in (("a", "1/a"), ("ab", "2/ab"), ("abc", "3/a/abc"), ("serde", "se/rd/serde")):
            self.assertEqual(str(update.index_file(name)), place)


class Sbom(unittest.TestCase):
    def test_the_check_of_the_structure_finds_faults(self):
        good = sbom.document([], [], {})
        self.assertEqual(sbom.faults(good), [])
        part = {"type": "library", "bom-ref": "pkg:cargo/a@1.0.0", "purl": "pkg:cargo/a@1.0.0", "name": "a",
                "version": "1.0.0", "licenses": [{"expression": "MIT"}], "hashes": [{"alg": "SHA-256", "content": "0" * 64}]}
        for change, expected in (
            ({}, None),
            ({"purl": "a"}, "purl"),
            ({"hashes": [{"alg": "SHA-256", "content": "0"}]}, "SHA-256"),
            ({"licenses": []}, "licence"),
            ({"version": ""}, "version"),
        ):
            found = " ".join(sbom.faults(good | {"components": [part | change]}))
            self.assertTrue(expected in found if expected else not found, (change, found))
        self.assertIn("twice", " ".join(sbom.faults(good | {"components": [part, part]})))
        dangling = good | {"dependencies": [{"ref": "pkg:cargo/b@1", "dependsOn": []}]}
        self.assertIn("pkg:cargo/b@1", " ".join(sbom.faults(dangling)))


if __name__ == "__main__":
    unittest.main()
