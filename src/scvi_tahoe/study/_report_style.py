"""How the report of a study looks: readable from a phone to a wide screen, and on paper."""

from __future__ import annotations

__all__ = ["STYLE"]

STYLE = """
*{box-sizing:border-box}
body{margin:0;font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1a1a1a;background:#fff}
main{max-width:1280px;margin:0 auto;padding:16px clamp(12px,3vw,40px) 64px}
h1{font-size:1.7em;line-height:1.2;margin:.6em 0 .3em}
h2{font-size:1.2em;margin:2em 0 .6em;padding-bottom:.2em;border-bottom:1px solid #ddd}
h3{font-size:1em;margin:0}
p{max-width:75ch;margin:.5em 0}
.verdict{padding:10px 14px;border-left:5px solid;font-weight:600;max-width:none}
.verdict.good{border-color:#009e73;background:#eef8f4}
.verdict.alert{border-color:#d55e00;background:#fdf1e9}
.wide{overflow-x:auto;margin:.6em 0}
.wide img{display:block;max-width:100%;height:auto}
#scores .wide img{min-width:640px}
#learning-curves .wide img{max-width:none;width:max(100%,1100px)}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid #e6e6e6;white-space:nowrap}
th{font-weight:600;border-bottom:2px solid #999;vertical-align:bottom}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:#fff}
td:first-child{font-weight:600}
tbody tr:hover td{background:#f6f8fa}
#configurations-where-they-differ td{white-space:normal;min-width:90px;max-width:190px;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr));gap:16px}
article{border:1px solid #ddd;border-radius:6px;padding:12px}
article p{font-size:13px}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font-size:12px;background:#f6f8fa;padding:8px;border-radius:4px}
summary{cursor:pointer;padding:3px 0}
.findings{list-style:none;padding:0;margin:.3em 0}
.findings li{border-left:4px solid #bbb;padding:2px 10px;margin:4px 0;font-size:13.5px;overflow-wrap:anywhere}
.findings li.warning{border-color:#e69f00}
.findings li.error{border-color:#d55e00}
@media print{details>*{display:block}.wide{overflow:visible}}
"""
