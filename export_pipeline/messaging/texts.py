"""The phrases of the mails in every language, with ``{placeholders}``.

Numbers follow a colon, so that no phrase needs a plural. A phrase ``..._one`` is for a single file; the phrase without
``_one`` is for several.
"""

from __future__ import annotations

from collections.abc import Mapping

Texts = Mapping[str, str]
CATALOG: Mapping[str, Texts] = {
    "en": {
        "subject": "Your export is ready: {title}",
        "heading": "Your export is ready",
        "intro": "The export you asked for is finished.",
        "empty": "Nothing matched the filters of this export: the file holds no rows.",
        "title": "Export",
        "organization": "Organization",
        "rows": "Rows",
        "size": "Size",
        "files": "Files",
        "snapshot": "Data as of",
        "download": "Download",
        "attached": "attached",
        "part": "File {number} of {count}",
        "attached_files": "The files are attached to this message.",
        "attached_files_one": "The file is attached to this message.",
        "more_listed": "Further files: {count}. The links to all files are in the attached {name}.",
        "more_attached": "Further files, attached as well: {count}",
        "more_unlisted": "Further files: {count}. Their links are too many for a mail: ask for them where you asked "
        "for the export.",
        "expires": "The links work until {instant}. After that, ask for a new export.",
        "expires_one": "The link works until {instant}. After that, ask for a new export.",
        "private": "The links need no password: anyone who has this message can download the files.",
        "private_one": "The link needs no password: anyone who has this message can download the file.",
        "cut_cells": "Cells cut because they were longer than the format allows: {count}",
        "replaced_characters": "Characters replaced because the format cannot hold them: {count}",
        "guarded_cells": "Cells marked with an apostrophe so that no spreadsheet runs them as formulas: {count}",
        "non_finite_numbers": "Numbers without a finite value, left empty: {count}",
        "automatic": "This message was sent automatically.",
        "failed_heading_requester": "Your export needs a correction",
        "failed_intro_requester": "The export could not be made as it was asked for. Correct what the details below "
        "name, then ask for it again.",
        "failed_heading_transient": "Your export could not be made this time",
        "failed_intro_transient": "Something that the export needs could not be reached, although it was tried several "
        "times. Nothing is wrong with your request: please ask for the export again later.",
        "failed_heading_ours": "Your export failed on our side",
        "failed_intro_ours": "Nothing is wrong with your request, and you need not change it. Our operators have to "
        "look at this first; if you write to them, give the reference below.",
        "paused_heading": "Your recurring export was paused",
        "paused_intro": "It makes no more exports until what the details below name is put right and it is resumed.",
        "paused_intro_ours": "Its last exports failed, although nothing is wrong with it. It makes no more exports "
        "until our operators have corrected the fault and it is resumed; if you write to them, give the reference "
        "below.",
        "recurring": "Recurring export",
        "unsubscribe": "Unsubscribe from this recurring export",
        "asked": "Asked for on",
        "error_code": "Error code",
        "reference": "Reference",
        "details": "Details",
    },
    "es": {
        "subject": "Tu exportación está lista: {title}",
        "heading": "Tu exportación está lista",
        "intro": "La exportación que pediste ha terminado.",
        "empty": "Ningún registro coincide con los filtros de esta exportación: el archivo no contiene filas.",
        "title": "Exportación",
        "organization": "Organización",
        "rows": "Filas",
        "size": "Tamaño",
        "files": "Archivos",
        "snapshot": "Datos al",
        "download": "Descargar",
        "attached": "adjunto",
        "part": "Archivo {number} de {count}",
        "attached_files": "Los archivos están adjuntos a este mensaje.",
        "attached_files_one": "El archivo está adjunto a este mensaje.",
        "more_listed": "Otros archivos: {count}. Los enlaces de todos los archivos están en el adjunto {name}.",
        "more_attached": "Otros archivos, también adjuntos: {count}",
        "more_unlisted": "Otros archivos: {count}. Sus enlaces no caben en un mensaje: pídelos donde pediste la "
        "exportación.",
        "expires": "Los enlaces funcionan hasta el {instant}. Después, pide una nueva exportación.",
        "expires_one": "El enlace funciona hasta el {instant}. Después, pide una nueva exportación.",
        "private": "Los enlaces no piden contraseña: quien tenga este mensaje puede descargar los archivos.",
        "private_one": "El enlace no pide contraseña: quien tenga este mensaje puede descargar el archivo.",
        "cut_cells": "Celdas cortadas por ser más largas de lo que permite el formato: {count}",
        "replaced_characters": "Caracteres reemplazados porque el formato no los admite: {count}",
        "guarded_cells": "Celdas marcadas con un apóstrofo para que ninguna hoja de cálculo "
        "las ejecute como fórmulas: {count}",
        "non_finite_numbers": "Números sin valor finito, dejados vacíos: {count}",
        "automatic": "Este mensaje se envió automáticamente.",
        "failed_heading_requester": "Tu exportación necesita una corrección",
        "failed_intro_requester": "La exportación no se pudo hacer tal como se pidió. Corrige lo que indican los "
        "detalles (en inglés) y vuelve a pedirla.",
        "failed_heading_transient": "Tu exportación no se pudo hacer esta vez",
        "failed_intro_transient": "No se pudo acceder a algo que la exportación necesita, aunque se intentó varias "
        "veces. Tu solicitud está bien: vuelve a pedir la exportación más tarde.",
        "failed_heading_ours": "Tu exportación falló por un problema nuestro",
        "failed_intro_ours": "Tu solicitud está bien y no hace falta cambiarla. Nuestros operadores tienen que "
        "revisar primero el problema; si les escribes, indica la referencia de abajo.",
        "paused_heading": "Tu exportación periódica se ha pausado",
        "paused_intro": "No se harán más exportaciones hasta que se corrija lo que indican los detalles (en inglés) y "
        "se reanude.",
        "paused_intro_ours": "Sus últimas exportaciones fallaron, aunque está bien configurada. No se harán más hasta "
        "que nuestros operadores corrijan el problema y se reanude; si les escribes, indica la referencia de abajo.",
        "recurring": "Exportación periódica",
        "unsubscribe": "Dejar de recibir esta exportación periódica",
        "asked": "Pedida el",
        "error_code": "Código de error",
        "reference": "Referencia",
        "details": "Detalles (en inglés)",
    },
    "pt": {
        "subject": "Sua exportação está pronta: {title}",
        "heading": "Sua exportação está pronta",
        "intro": "A exportação que você pediu terminou.",
        "empty": "Nenhum registro corresponde aos filtros desta exportação: o arquivo não contém linhas.",
        "title": "Exportação",
        "organization": "Organização",
        "rows": "Linhas",
        "size": "Tamanho",
        "files": "Arquivos",
        "snapshot": "Dados de",
        "download": "Baixar",
        "attached": "em anexo",
        "part": "Arquivo {number} de {count}",
        "attached_files": "Os arquivos estão anexados a esta mensagem.",
        "attached_files_one": "O arquivo está anexado a esta mensagem.",
        "more_listed": "Outros arquivos: {count}. Os links de todos os arquivos estão no anexo {name}.",
        "more_attached": "Outros arquivos, também em anexo: {count}",
        "more_unlisted": "Outros arquivos: {count}. Os links não cabem em uma mensagem: peça-os onde pediu a "
        "exportação.",
        "expires": "Os links funcionam até {instant}. Depois disso, peça uma nova exportação.",
        "expires_one": "O link funciona até {instant}. Depois disso, peça uma nova exportação.",
        "private": "Os links não pedem senha: quem tiver esta mensagem pode baixar os arquivos.",
        "private_one": "O link não pede senha: quem tiver esta mensagem pode baixar o arquivo.",
        "cut_cells": "Células cortadas por serem mais longas do que o formato permite: {count}",
        "replaced_characters": "Caracteres substituídos porque o formato não os aceita: {count}",
        "guarded_cells": "Células marcadas com um apóstrofo para que nenhuma planilha "
        "as execute como fórmulas: {count}",
        "non_finite_numbers": "Números sem valor finito, deixados vazios: {count}",
        "automatic": "Esta mensagem foi enviada automaticamente.",
        "failed_heading_requester": "Sua exportação precisa de uma correção",
        "failed_intro_requester": "A exportação não pôde ser feita como foi pedida. Corrija o que os detalhes "
        "(em inglês) indicam e peça-a de novo.",
        "failed_heading_transient": "Sua exportação não pôde ser feita desta vez",
        "failed_intro_transient": "Não foi possível acessar algo de que a exportação precisa, embora tenha havido "
        "várias tentativas. Seu pedido está correto: peça a exportação de novo mais tarde.",
        "failed_heading_ours": "Sua exportação falhou por um problema nosso",
        "failed_intro_ours": "Seu pedido está correto e não precisa ser mudado. Nossos operadores precisam examinar o "
        "problema primeiro; se escrever para eles, informe a referência abaixo.",
        "paused_heading": "Sua exportação recorrente foi pausada",
        "paused_intro": "Nenhuma outra exportação será feita até que se corrija o que os detalhes (em inglês) indicam "
        "e ela seja retomada.",
        "paused_intro_ours": "Suas últimas exportações falharam, embora ela esteja correta. Nenhuma outra será feita "
        "até que nossos operadores corrijam o problema e ela seja retomada; se escrever para eles, informe a "
        "referência abaixo.",
        "recurring": "Exportação recorrente",
        "unsubscribe": "Deixar de receber esta exportação recorrente",
        "asked": "Pedida em",
        "error_code": "Código do erro",
        "reference": "Referência",
        "details": "Detalhes (em inglês)",
    },
}
"""Phrases by language. ``pt`` is Brazilian Portuguese."""
DEFAULT_LANGUAGE = "en"


def language_of(locale: str | None) -> str:
    """The language of a mail: ``es-MX`` and ``es_MX`` are ``es``; unknown, empty or None is ``en``."""
    language = (locale or "").strip().replace("_", "-").partition("-")[0].lower()
    return language if language in CATALOG else DEFAULT_LANGUAGE
